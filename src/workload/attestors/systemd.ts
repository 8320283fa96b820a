/**
 * systemd: selectors as SPIRE's attestor writes them. The unit is the one whose control group the system manager put the process
 * into, found as systemd finds it (sd_pid_get_unit(3)); where its file lies is asked of systemd on the system's D-Bus.
 */
import type { Caller } from '../callers.ts';
import { type WorkloadAttestor, wants } from './attestor.ts';
import { type Cgroup, cgroupsOf, madeByRoot, readMounts } from './cgroup.ts';
import { connectBus } from './dbus.ts';

const SYSTEMD = 'org.freedesktop.systemd1';
/** systemd.unit(5): name, perhaps "@instance", and a type that holds processes. */
const UNIT = /^[A-Za-z0-9:_.\\@-]{1,240}\.(?:service|scope|socket|mount|swap)$/;
const SLICE = /^[A-Za-z0-9:_.\\@-]{1,240}\.slice$/;

export function createSystemdAttestor(systemBus: string): WorkloadAttestor {
  return {
    type: 'systemd',
    async selectorsOf(caller, wanted, signal) {
      const unit = await unitOf(caller);
      if (unit === undefined) return [];
      const selectors = [`systemd:id:${unit}`];
      if (wants(wanted, 'systemd:fragment_path:')) {
        const path = await fragmentPathOf(unit, systemBus, signal);
        if (path !== '') selectors.push(`systemd:fragment_path:${path}`);
      }
      return caller.isAlive() ? selectors : [];
    },
  };
}

/** undefined: the process is in no unit of the system manager. */
async function unitOf(caller: Caller): Promise<string | undefined> {
  const cgroups = (await cgroupsOf(caller)).filter(
    ({ controllers, path }) => (controllers === '' || controllers === 'name=systemd') && path !== '/',
  );
  const [first, second] = cgroups;
  // systemd keeps its own hierarchy and the unified one alike
  if (first === undefined || (second !== undefined && second.path !== first.path)) return undefined;
  const found = unitIn(first.path);
  if (found === undefined || !(await madeByRoot(first, found.path, await readMounts()))) return undefined;
  return found.unit;
}

/**
 * The first component below the slices. What is below it, such as the units of a user's own manager in user@1000.service, is
 * named by whoever the unit was delegated to.
 */
export function unitIn(path: Cgroup['path']): { readonly unit: string; readonly path: string } | undefined {
  const parts = path.split('/').slice(1);
  const depth = parts.findIndex((part) => !SLICE.test(part));
  const part = parts[depth];
  if (part === undefined) return undefined;
  // a leading "_" escapes names that control groups keep for themselves
  const unit = part.startsWith('_') ? part.slice(1) : part;
  return UNIT.test(unit) ? { unit, path: `/${parts.slice(0, depth + 1).join('/')}` } : undefined;
}

/** "" if the unit has no file. @throws when systemd cannot be asked. */
async function fragmentPathOf(unit: string, systemBus: string, signal: AbortSignal): Promise<string> {
  const bus = await connectBus(systemBus, signal);
  try {
    const path = await bus.call({
      destination: SYSTEMD,
      path: '/org/freedesktop/systemd1',
      interface: `${SYSTEMD}.Manager`,
      member: 'GetUnit',
      strings: [unit],
    });
    return await bus.call({
      destination: SYSTEMD,
      path,
      interface: 'org.freedesktop.DBus.Properties',
      member: 'Get',
      strings: [`${SYSTEMD}.Unit`, 'FragmentPath'],
    });
  } finally {
    bus.close();
  }
}
