/**
 * One process at a time may write a node's maps, whatever its settings, its build and the layout of its maps: two agents that
 * share pins would each undo the other's closed endpoints. The kernel lets go of the lock when the process ends, however it ends.
 */
import { constants, existsSync, fstatSync, mkdirSync, openSync, rmdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import { checkBpffs, checkPrivate, nodeSegment, pinBase, removeIfEmpty } from './pins.ts';

export interface NodeLock {
  release(): void;
  /** Lets go and leaves no trace on the bpffs. */
  releaseAndRemove(): void;
}

/** undefined while another process holds it. @throws CountersignError unsupported when there is no bpffs. */
export function tryLockNode(bpffs: string, node: string): NodeLock | undefined {
  checkBpffs(bpffs);
  // Who only looks whether it is held holds it for a moment.
  for (let tries = 0; tries < 10; tries++) {
    const lock = tryOnce(bpffs, node);
    if (lock !== undefined) return lock;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  return undefined;
}

function tryOnce(bpffs: string, node: string): NodeLock | undefined {
  const base = pinBase(bpffs);
  const path = lockPath(bpffs, node);
  for (;;) {
    for (const directory of [base, join(base, 'locks'), path]) {
      if (!existsSync(directory)) mkdirSync(directory, { mode: 0o700 });
      checkPrivate(directory);
    }
    const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
    if (!native().tryLock(fd)) {
      native().closeFd(fd);
      return undefined;
    }
    // An uninstall may have removed the directory between its opening and its locking: then it locks nothing.
    if (existsSync(path) && statSync(path).ino === fstatSync(fd).ino) return lockOf(fd, path, base);
    native().closeFd(fd);
  }
}

/** True while a process holds it. Leaves no trace. */
export function isLocked(bpffs: string, node: string): boolean {
  const path = lockPath(bpffs, node);
  if (!existsSync(path)) return false;
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    return !native().tryLock(fd);
  } finally {
    native().closeFd(fd);
  }
}

/** @throws CountersignError already-exists while another process holds it. */
export function lockNode(bpffs: string, node: string): NodeLock {
  const lock = tryLockNode(bpffs, node);
  if (lock !== undefined) return lock;
  throw new CountersignError(
    'already-exists',
    `the datapath of node ${node} on ${bpffs} is in use: does another agent run with this node name?`,
  );
}

function lockPath(bpffs: string, node: string): string {
  return join(pinBase(bpffs), 'locks', nodeSegment(node));
}

function lockOf(fd: number, path: string, base: string): NodeLock {
  return {
    release: () => native().closeFd(fd),
    releaseAndRemove() {
      rmdirSync(path);
      native().closeFd(fd);
      removeIfEmpty(join(base, 'locks'));
      removeIfEmpty(base);
    },
  };
}
