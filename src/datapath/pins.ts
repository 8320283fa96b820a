/** Where maps, links and programs are pinned: `<bpffs>/countersign/v<abi>/<node>/{maps,links,progs}/`. */
import { existsSync, mkdirSync, readdirSync, rmdirSync, statfsSync, statSync, unlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CountersignError } from '../base/errors.ts';
import { ABI_VERSION } from './layout.ts';

const BPF_FS_MAGIC = 0xcafe4a11;

export interface Pins {
  readonly root: string;
  readonly maps: string;
  readonly links: string;
  readonly progs: string;
}

/** Paths only; nothing is made. @throws CountersignError bad-input when `node` is no single path segment. */
export function pinPaths(bpffs: string, node: string): Pins {
  if (!/^[a-z0-9.-]{1,63}$/.test(node)) {
    throw new CountersignError('bad-input', `the node name ${JSON.stringify(node)} cannot be part of a path`);
  }
  // bpffs keeps names with dots for itself, so a dot of the node's name becomes an underscore, which no node name has.
  const root = join(bpffs, 'countersign', `v${ABI_VERSION}`, node.replaceAll('.', '_'));
  return { root, maps: join(root, 'maps'), links: join(root, 'links'), progs: join(root, 'progs') };
}

/** Makes the directories, readable by root only. @throws CountersignError unsupported when there is no bpffs. */
export function makePins(bpffs: string, node: string): Pins {
  const pins = pinPaths(bpffs, node);
  if (!existsSync(bpffs) || statfsSync(bpffs).type !== BPF_FS_MAGIC) {
    throw new CountersignError('unsupported', `${bpffs} is no bpffs: run mount -t bpf bpf ${bpffs}`);
  }
  for (const path of [dirname(dirname(pins.root)), dirname(pins.root), pins.root, pins.maps, pins.links, pins.progs]) {
    if (!existsSync(path)) mkdirSync(path, { mode: 0o700 });
    const { uid, mode } = statSync(path);
    // Who can write here could put his own map in the place of the agent's.
    if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
      throw new CountersignError(
        'permission-denied',
        `${path} must belong to the agent's user and be closed to others (mode 0700)`,
      );
    }
  }
  return pins;
}

export function listPins(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}

/** False if it was not there. */
export function unpin(path: string): boolean {
  try {
    unlinkSync(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Removes every pin and directory of the node, and the common ones above it when they are empty. */
export function removePins(pins: Pins): void {
  for (const directory of [pins.links, pins.progs, pins.maps]) {
    for (const name of listPins(directory)) unpin(join(directory, name));
    if (existsSync(directory)) rmdirSync(directory);
  }
  for (const path of [pins.root, dirname(pins.root), dirname(dirname(pins.root))]) {
    if (existsSync(path) && listPins(path).length === 0) rmdirSync(path);
    else return;
  }
}
