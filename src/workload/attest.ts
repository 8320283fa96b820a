/** Workload attestation: the entries that a caller's process is entitled to, by selectors that attestors find out. */
import { asError, err, ok, type Result } from '../base/errors.ts';
import { systemTimers, type Timers } from '../base/timers.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { WorkloadAttestor } from './attestors/attestor.ts';
import { createContainerAttestor } from './attestors/container.ts';
import { createDockerAttestor } from './attestors/docker.ts';
import { createSystemdAttestor } from './attestors/systemd.ts';
import { createUnixAttestor } from './attestors/unix.ts';
import type { Caller } from './callers.ts';
import type { RareLog } from './rare-log.ts';

export interface AttestationOptions {
  /** Of the Docker Engine API, for docker: selectors. Left out: nobody has any. */
  readonly dockerSocket?: string | undefined;
  /** Of the system's D-Bus, for systemd:fragment_path. */
  readonly systemBus?: string;
  /** What one attestor may take for one process. */
  readonly deadlineMs?: number;
}

export interface Attestor {
  /**
   * The entries whose every selector is the caller's, in the order given. Empty when its process has ended. An error when an
   * attestor failed and an entry hangs on nothing but its word: fewer identities than he has would be a wrong answer, as
   * what is absent counts as taken back (SPIFFE Workload API, section 4.4).
   */
  entriesOf(
    caller: Caller,
    entries: readonly RegistrationEntry[],
  ): Promise<Result<readonly RegistrationEntry[], 'failed'>>;
}

const DEFAULT_DEADLINE_MS = 5_000;
/** Types of selectors that are spoken of in the log, each once. */
const MAX_TYPES_SAID = 64;
const DEFAULT_SYSTEM_BUS = '/run/dbus/system_bus_socket';

export function createAttestor(options: AttestationOptions, log: RareLog, timers: Timers = systemTimers): Attestor {
  const { dockerSocket, systemBus = DEFAULT_SYSTEM_BUS, deadlineMs = DEFAULT_DEADLINE_MS } = options;
  const attestors = [
    createUnixAttestor(),
    createContainerAttestor(),
    createSystemdAttestor(systemBus),
    ...(dockerSocket === undefined ? [] : [createDockerAttestor(dockerSocket)]),
  ];
  return attestBy(attestors, deadlineMs, log, timers);
}

export function attestBy(
  attestors: readonly WorkloadAttestor[],
  deadlineMs: number,
  log: RareLog,
  timers: Timers = systemTimers,
): Attestor {
  const unattested = new Set<string>();
  const sayUnattested = (type: string) => {
    if (unattested.has(type) || unattested.size >= MAX_TYPES_SAID) return;
    unattested.add(type);
    log.warn(type, { type }, 'entries have selectors of a type that nothing on this node attests: they match nobody');
  };
  return {
    async entriesOf(caller, entries) {
      const candidates = entries.filter((entry) => entry.selectors.length > 0 && !contradicts(entry, caller));
      const wanted = byType(candidates);
      for (const type of wanted.keys()) if (!attestors.some((attestor) => attestor.type === type)) sayUnattested(type);
      const selectors = new Set<string>();
      const failed = new Set<string>();
      const ask = async (attestor: WorkloadAttestor, asked: ReadonlySet<string>) => {
        try {
          const found = await within(deadlineMs, timers, (signal) => attestor.selectorsOf(caller, asked, signal));
          for (const selector of found) selectors.add(selector);
        } catch (thrown) {
          failed.add(attestor.type);
          const { pid, uid } = caller;
          const fields = { attestor: attestor.type, pid, uid, problem: asError(thrown).message };
          log.warn(`${attestor.type} ${uid}`, fields, 'a workload attestor failed');
        }
      };
      await Promise.all(
        attestors.flatMap((attestor) => {
          const asked = wanted.get(attestor.type);
          return asked === undefined ? [] : [ask(attestor, asked)];
        }),
      );
      if (!caller.isAlive()) return ok([]);
      const has = (selector: string) => selectors.has(selector);
      const open = (selector: string) => has(selector) || failed.has(typeOf(selector));
      if (failed.size > 0 && candidates.some((e) => e.selectors.every(open) && !e.selectors.every(has)))
        return err('failed');
      return ok(candidates.filter((entry) => entry.selectors.every(has)));
    },
  };
}

/** By what the kernel said of the caller: whoever is asked beyond it costs something. */
function contradicts(entry: RegistrationEntry, { uid, gid }: Caller): boolean {
  return entry.selectors.some(
    (s) =>
      (s.startsWith('unix:uid:') && s !== `unix:uid:${uid}`) || (s.startsWith('unix:gid:') && s !== `unix:gid:${gid}`),
  );
}

function typeOf(selector: string): string {
  return selector.slice(0, selector.indexOf(':'));
}

function byType(entries: readonly RegistrationEntry[]): Map<string, Set<string>> {
  const wanted = new Map<string, Set<string>>();
  for (const { selectors } of entries) {
    for (const selector of selectors) {
      const type = typeOf(selector);
      const known = wanted.get(type);
      if (known === undefined) wanted.set(type, new Set([selector]));
      else known.add(selector);
    }
  }
  return wanted;
}

async function within<T>(ms: number, timers: Timers, act: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  let cancel = () => {};
  const late = new Promise<never>((_, reject) => {
    cancel = timers.set(ms, () => {
      abort.abort();
      reject(new Error(`no answer within ${ms} ms`));
    });
  });
  try {
    return await Promise.race([act(abort.signal), late]);
  } finally {
    cancel();
  }
}
