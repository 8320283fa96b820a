/** unix: selectors as SPIRE's attestor writes them: user, groups and program of the process at the other end of the socket. */
import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import { type FileHandle, open, readFile, readlink, stat } from 'node:fs/promises';
import type { Caller } from '../callers.ts';
import { type WorkloadAttestor, wants } from './attestor.ts';

/** A larger program is not hashed: it has no unix:sha256. */
const MAX_PROGRAM_BYTES = 1024 * 1024 * 1024;
const MAX_CACHED_DIGESTS = 1_024;

export function createUnixAttestor(): WorkloadAttestor {
  const digests = new Map<string, Promise<string>>();
  return {
    type: 'unix',
    async selectorsOf(caller, wanted) {
      const { uid, gid } = caller;
      const selectors = [`unix:uid:${uid}`, `unix:gid:${gid}`];
      if (wants(wanted, 'unix:user:')) selectors.push(...(await named('unix:user', '/etc/passwd', [uid])));
      if (wants(wanted, 'unix:group:')) selectors.push(...(await named('unix:group', '/etc/group', [gid])));
      if (wants(wanted, 'unix:supplementary_')) {
        const groups = await supplementaryGroupsOf(caller);
        selectors.push(...groups.map((group) => `unix:supplementary_gid:${group}`));
        selectors.push(...(await named('unix:supplementary_group', '/etc/group', groups)));
      }
      const [path, sha256] = [wants(wanted, 'unix:path:'), wants(wanted, 'unix:sha256:')];
      if (path || sha256) {
        const program = await programOf(caller, digests, { path, sha256 });
        if (program.path !== undefined) selectors.push(`unix:path:${program.path}`);
        if (program.sha256 !== undefined) selectors.push(`unix:sha256:${program.sha256}`);
      }
      return selectors;
    },
  };
}

/**
 * The names of ids in this host's passwd(5) or group(5): "name:password:id:...". Who is not in the file, as in a directory
 * service or in a container's own file, has no name.
 */
async function named(selector: string, file: string, ids: readonly number[]): Promise<string[]> {
  if (ids.length === 0) return [];
  const lines = (await readFile(file, 'utf8')).split('\n').map((line) => line.split(':'));
  return ids.flatMap((id) => {
    const name = lines.find((fields) => fields[2] === String(id))?.[0];
    return name === undefined || name === '' ? [] : [`${selector}:${name}`];
  });
}

async function supplementaryGroupsOf(caller: Caller): Promise<number[]> {
  const status = await statusOf(caller).catch(() => '');
  const groups = /^Groups:[ \t]*([0-9 ]*)$/m.exec(status)?.[1] ?? '';
  return caller.isAlive() ? groups.split(' ').flatMap((group) => (group === '' ? [] : [Number(group)])) : [];
}

/** /proc/PID/status, if its user is the one whom the kernel gave for the socket. */
async function statusOf({ pid, uid }: Caller): Promise<string> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const uids = /^Uid:\s+(.*)$/m.exec(status)?.[1]?.split(/\s+/) ?? [];
  if (!uids.includes(String(uid))) throw new Error('the process is of another user');
  return status;
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
    await statusOf(caller);
    if (!caller.isAlive()) return {};
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
