/** Workload attestation: a caller's selectors, and the entries they entitle it to. Written as SPIRE's unix attestor writes them. */
import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import { type FileHandle, open, readFile, readlink, stat } from 'node:fs/promises';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Caller } from './callers.ts';

/** A larger program is not hashed: it has no unix:sha256. */
const MAX_PROGRAM_BYTES = 1024 * 1024 * 1024;
const MAX_CACHED_DIGESTS = 1_024;

export interface Attestor {
  /** The entries whose every selector is the caller's, in the order given. Empty when its process has ended. */
  entriesOf(caller: Caller, entries: readonly RegistrationEntry[]): Promise<readonly RegistrationEntry[]>;
}

export function createAttestor(): Attestor {
  const digests = new Map<string, Promise<string>>();
  return {
    async entriesOf(caller, entries) {
      const selectors = new Set([`unix:uid:${caller.uid}`, `unix:gid:${caller.gid}`]);
      const needs = (type: string) => entries.some((entry) => entry.selectors.some((s) => s.startsWith(type)));
      const [path, sha256] = [needs('unix:path:'), needs('unix:sha256:')];
      if (path || sha256) {
        const program = await programOf(caller, digests, { path, sha256 });
        if (program.path !== undefined) selectors.add(`unix:path:${program.path}`);
        if (program.sha256 !== undefined) selectors.add(`unix:sha256:${program.sha256}`);
      }
      if (!caller.isAlive()) return [];
      return entries.filter((entry) => entry.selectors.length > 0 && entry.selectors.every((s) => selectors.has(s)));
    },
  };
}

interface Program {
  readonly path?: string;
  /** Lower-case hex. */
  readonly sha256?: string;
}

/**
 * What the process runs. Whatever /proc says counts only if the process is still the one that connected: the pidfd is alive
 * after the reading, and the uid is the one the kernel gave for the socket. Any doubt gives no selector, never a wrong one.
 */
async function programOf(
  caller: Caller,
  digests: Map<string, Promise<string>>,
  wanted: { path: boolean; sha256: boolean },
): Promise<Program> {
  const proc = `/proc/${caller.pid}`;
  let file: FileHandle | undefined;
  try {
    file = await open(`${proc}/exe`, 'r');
    const running = await file.stat();
    const path = wanted.path ? await pathOf(`${proc}/exe`, running) : undefined;
    const sha256 = wanted.sha256 ? await digestOf(file, running, digests) : undefined;
    const uids = /^Uid:\s+(.*)$/m.exec(await readFile(`${proc}/status`, 'utf8'))?.[1]?.split(/\s+/) ?? [];
    if (!uids.includes(String(caller.uid)) || !caller.isAlive()) return {};
    return { ...(path === undefined ? {} : { path }), ...(sha256 === undefined ? {} : { sha256 }) };
  } catch {
    return {};
  } finally {
    await file?.close();
  }
}

/** The link's text is a name in the process's own mount namespace: it counts only if it names the same file here. */
async function pathOf(link: string, running: Stats): Promise<string | undefined> {
  const path = await readlink(link);
  const here = await stat(path).catch(() => undefined);
  return here !== undefined && here.dev === running.dev && here.ino === running.ino ? path : undefined;
}

/** Hashed once for each content: a running program cannot be written to (ETXTBSY), and a replaced one is another inode. */
function digestOf(
  file: FileHandle,
  { dev, ino, size, mtimeMs, ctimeMs }: Stats,
  digests: Map<string, Promise<string>>,
): Promise<string> | undefined {
  if (size > MAX_PROGRAM_BYTES) return undefined;
  const key = [dev, ino, size, mtimeMs, ctimeMs].join(' ');
  const cached = digests.get(key);
  if (cached !== undefined) return cached;
  const digest = hash(file);
  if (digests.size >= MAX_CACHED_DIGESTS) digests.delete(digests.keys().next().value!);
  digests.set(key, digest);
  digest.catch(() => digests.delete(key));
  return digest;
}

async function hash(file: FileHandle): Promise<string> {
  const sha256 = createHash('sha256');
  const chunk = Buffer.alloc(1024 * 1024);
  for (let position = 0; ; ) {
    const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
    if (bytesRead === 0) return sha256.digest('hex');
    sha256.update(chunk.subarray(0, bytesRead));
    position += bytesRead;
  }
}
