/** Which container a process runs in, by its control groups; `container:` selectors say it. SPIRE has no selectors of this type. */
import type { Caller } from '../callers.ts';
import type { WorkloadAttestor } from './attestor.ts';
import { cgroupsOf, madeByRoot, ownCgroups, readMounts } from './cgroup.ts';
import { containersIn, type PathContainer } from './container-path.ts';

export function createContainerAttestor(): WorkloadAttestor {
  return {
    type: 'container',
    async selectorsOf(caller) {
      const container = await containerOf(caller);
      if (container === undefined) return [];
      const { id, runtime } = container;
      return [`container:id:${id}`, ...(runtime === undefined ? [] : [`container:runtime:${runtime}`])];
    },
  };
}

/**
 * The outermost container of the process, for that one is what this node's runtime started; what is nested in it was named by
 * whoever runs in it. An agent that runs in a container itself, as in kind, looks from inside of its own. undefined: the process
 * is in none. @throws when its control groups name different containers, or cannot be read.
 */
export async function containerOf(caller: Caller): Promise<PathContainer | undefined> {
  const cgroups = await cgroupsOf(caller);
  const named = cgroups.filter(({ path }) => containersIn(path).length > 0);
  if (named.length === 0) return undefined;
  const [own, mounts] = await Promise.all([ownCgroups(), readMounts()]);
  let container: PathContainer | undefined;
  for (const cgroup of named) {
    const around = new Set(
      own.filter(({ controllers }) => controllers === cgroup.controllers).flatMap(({ path }) => idsIn(path)),
    );
    const all = containersIn(cgroup.path);
    const found = all.find(({ id }) => !around.has(id)) ?? all[all.length - 1]!;
    if (!(await madeByRoot(cgroup, found.path, mounts))) continue;
    if (container !== undefined && container.id !== found.id) {
      throw new Error('the control groups of the process name different containers');
    }
    container = found;
  }
  return caller.isAlive() ? container : undefined;
}

function idsIn(path: string): string[] {
  return containersIn(path).map(({ id }) => id);
}
