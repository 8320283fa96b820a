/** Where maps, links and programs are pinned: `<bpffs>/countersign/v<abi>/<node>/{maps,links,progs}/`. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmdirSync, statfsSync, statSync, unlinkSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { native } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import { ABI_VERSION } from './layout.ts';
import { noStep, type OnStep } from './steps.ts';

/** A pin that has not yet taken its place: an earlier process died there. */
export const NEW = 'new-';
const BPF_FS_MAGIC = 0xcafe4a11;

export interface Pins {
  readonly root: string;
  readonly maps: string;
  readonly links: string;
  readonly progs: string;
}

/** The directory of everything of ours. */
export function pinBase(bpffs: string): string {
  return join(bpffs, 'countersign');
}

/** @throws CountersignError bad-input when `node` is no single path segment. */
export function nodeSegment(node: string): string {
  if (!/^[a-z0-9.-]{1,63}$/.test(node)) {
    throw new CountersignError('bad-input', `the node name ${JSON.stringify(node)} cannot be part of a path`);
  }
  // bpffs keeps names with dots for itself, so a dot of the node's name becomes an underscore, which no node name has.
  return node.replaceAll('.', '_');
}

/** Paths only; nothing is made. @throws CountersignError bad-input when `node` is no single path segment. */
export function pinPaths(bpffs: string, node: string, version: number = ABI_VERSION): Pins {
  const root = join(pinBase(bpffs), `v${version}`, nodeSegment(node));
  return { root, maps: join(root, 'maps'), links: join(root, 'links'), progs: join(root, 'progs') };
}

/** What agents with another layout of the maps pinned for this node, older ones and newer ones. */
export function otherVersions(bpffs: string, node: string): { readonly version: number; readonly pins: Pins }[] {
  return listPins(pinBase(bpffs)).flatMap((name) => {
    const version = Number(/^v(\d{1,6})$/.exec(name)?.[1]);
    if (Number.isNaN(version) || version === ABI_VERSION) return [];
    const pins = pinPaths(bpffs, node, version);
    return existsSync(pins.root) ? [{ version, pins }] : [];
  });
}

/** @throws CountersignError unsupported when there is no bpffs. */
export function checkBpffs(bpffs: string): void {
  if (!existsSync(bpffs) || statfsSync(bpffs).type !== BPF_FS_MAGIC) {
    throw new CountersignError('unsupported', `${bpffs} is no bpffs: run mount -t bpf bpf ${bpffs}`);
  }
}

/** Who can write here could put his own map in the place of the agent's. @throws CountersignError permission-denied */
export function checkPrivate(path: string): void {
  const { uid, mode } = statSync(path);
  if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
    throw new CountersignError(
      'permission-denied',
      `${path} must belong to the agent's user and be closed to others (mode 0700)`,
    );
  }
}

/** Makes the directories, readable by root only. @throws CountersignError unsupported when there is no bpffs. */
export function makePins(bpffs: string, node: string): Pins {
  const pins = pinPaths(bpffs, node);
  checkBpffs(bpffs);
  for (const path of [dirname(dirname(pins.root)), dirname(pins.root), pins.root, pins.maps, pins.links, pins.progs]) {
    if (!existsSync(path)) mkdirSync(path, { mode: 0o700 });
    checkPrivate(path);
  }
  return pins;
}

export function listPins(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}

/** False if it was not there. */
export function unpin(path: string, onStep: OnStep = noStep): boolean {
  try {
    unlinkSync(path);
    onStep(`unpinned ${basename(path)}`);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Removes every pin and directory of the node, and the common ones above it when they are empty. */
export function removePins(pins: Pins, onStep: OnStep = noStep): void {
  for (const directory of [pins.links, pins.progs, pins.maps]) {
    for (const name of listPins(directory)) unpin(join(directory, name), onStep);
    if (existsSync(directory)) rmdirSync(directory);
  }
  for (const path of [pins.root, dirname(pins.root), dirname(dirname(pins.root))]) removeIfEmpty(path);
}

export function removeIfEmpty(directory: string): void {
  if (existsSync(directory) && listPins(directory).length === 0) rmdirSync(directory);
}

/** In the place of what may be pinned there, which lives on until then: at no moment is there neither. */
export function pinOver(fd: number, path: string, onStep: OnStep): void {
  const fresh = join(dirname(path), `${NEW}${basename(path)}`);
  unpin(fresh, onStep);
  native().objPin(fd, fresh);
  onStep(`pinned ${basename(fresh)}`);
  renameSync(fresh, path);
  onStep(`pinned ${basename(path)}`);
}
