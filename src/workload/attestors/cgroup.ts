/**
 * Which control groups a process is in, as far as that can be believed: what a path says was written by whoever may make
 * directories there, so it counts only below directories that root alone can write to.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Caller } from '../callers.ts';

/** One line of /proc/PID/cgroup (cgroups(7)). */
export interface Cgroup {
  /** Comma-separated; "" is the unified hierarchy (version 2), "name=systemd" systemd's own of version 1. */
  readonly controllers: string;
  /** From the root of the hierarchy, beginning with "/". */
  readonly path: string;
}

const MAX_LINES = 64;
const MAX_PATH_BYTES = 4_096;

/** Strict: a line that is not as the kernel writes it makes the whole answer unusable. */
export function parseCgroups(text: string): Cgroup[] | undefined {
  const lines = text.split('\n');
  if (lines.pop() !== '' || lines.length > MAX_LINES) return undefined;
  const cgroups: Cgroup[] = [];
  for (const line of lines) {
    const match = /^\d{1,10}:([^:]*):(\/.*)$/s.exec(line);
    if (match === null || match[2]!.length > MAX_PATH_BYTES) return undefined;
    cgroups.push({ controllers: match[1]!, path: match[2]! });
  }
  return cgroups;
}

/** The caller's, and none if its process has ended. @throws when they cannot be read. */
export async function cgroupsOf(caller: Caller): Promise<Cgroup[]> {
  const text = await readFile(`/proc/${caller.pid}/cgroup`, 'utf8').catch((error) => {
    if (!caller.isAlive()) return '';
    throw error;
  });
  const cgroups = parseCgroups(text);
  if (cgroups === undefined) throw new Error('/proc/PID/cgroup is not as cgroups(7) describes it');
  return caller.isAlive() ? cgroups : [];
}

export function ownCgroups(): Promise<Cgroup[]> {
  return readFile('/proc/self/cgroup', 'utf8').then((text) => parseCgroups(text) ?? []);
}

/** Where each hierarchy is mounted whole, by its controllers; the unified one by "". */
export function parseMounts(mountinfo: string): ReadonlyMap<string, string> {
  const mounts = new Map<string, string>();
  for (const line of mountinfo.split('\n')) {
    // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, "-", type, source, super options
    const match = /^\d+ \d+ \d+:\d+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$/.exec(line);
    if (match === null || match[1] !== '/') continue;
    const point = match[2]!.replace(/\\([0-7]{3})/g, (_, octal: string) =>
      String.fromCharCode(Number.parseInt(octal, 8)),
    );
    if (match[3] === 'cgroup2') mounts.set('', point);
    else for (const option of match[4]!.split(',')) mounts.set(option, point);
  }
  return mounts;
}

/**
 * True if only root could have made the directory `path` in the cgroup's hierarchy: every directory above it is root's, and
 * nobody else may write to it. Who has a subtree delegated to him (cgroups(7)) can name what is in it as he likes.
 */
export async function madeByRoot(cgroup: Cgroup, path: string, mounts: ReadonlyMap<string, string>): Promise<boolean> {
  const mount = mounts.get(cgroup.controllers.split(',')[0]!);
  const parts = path.split('/').slice(1);
  if (mount === undefined || parts.some((part) => part === '' || part === '.' || part === '..')) return false;
  for (let depth = 0; depth < parts.length; depth++) {
    const above = await stat(join(mount, ...parts.slice(0, depth))).catch(() => undefined);
    if (above === undefined || !above.isDirectory() || above.uid !== 0) return false;
    if ((above.mode & 0o002) !== 0 || ((above.mode & 0o020) !== 0 && above.gid !== 0)) return false;
  }
  return true;
}

export async function readMounts(): Promise<ReadonlyMap<string, string>> {
  return parseMounts(await readFile('/proc/self/mountinfo', 'utf8'));
}
