/**
 * What an operator does to a node's datapath while no agent runs: let everything pass, take the programs off, take everything
 * away. All of it under the node's lock, so that no agent writes the same maps.
 */
import { existsSync } from 'node:fs';
import { CountersignError } from '../base/errors.ts';
import { detachAll } from './attach.ts';
import { ConfigWriter } from './config.ts';
import { CFG_STOPPED } from './layout.ts';
import { type NodeLock, tryLockNode } from './lock.ts';
import type { DatapathMaps } from './maps.ts';
import { isPinned, withPinnedMaps } from './pinned.ts';
import { otherVersions, pinBase, pinPaths, removePins } from './pins.ts';
import { noStep, type OnStep } from './steps.ts';

export interface NodeDatapath {
  readonly bpffs: string;
  readonly node: string;
  readonly onStep?: OnStep;
}

/** @throws CountersignError already-exists while the agent runs */
function lockWithoutAgent({ bpffs, node }: NodeDatapath): NodeLock {
  const lock = tryLockNode(bpffs, node);
  if (lock !== undefined) return lock;
  throw new CountersignError('already-exists', `the agent of node ${node} is running; stop it first`);
}

/**
 * Break-glass, or its end, written into the kernel directly. The next agent goes by its own record, not by this.
 * @throws CountersignError already-exists while the agent runs, not-found when nothing is pinned
 */
export function setStoppedWithoutAgent(at: NodeDatapath, stopped: boolean): void {
  const lock = lockWithoutAgent(at);
  try {
    withPinnedMaps(at.bpffs, at.node, at.onStep ?? noStep, (maps) => void setStopped(maps, stopped));
  } finally {
    lock.release();
  }
}

/** Returns what it was before. */
function setStopped(maps: DatapathMaps, stopped: boolean): boolean {
  const config = new ConfigWriter(maps);
  const { flags } = config.current;
  config.set({ flags: stopped ? flags | CFG_STOPPED : flags & ~CFG_STOPPED });
  config.bumpRevision();
  return (flags & CFG_STOPPED) !== 0;
}

/**
 * Takes every program off. What is pinned else stays, and the next agent attaches and goes on from it. Must run in the node's
 * network namespace. @throws CountersignError already-exists while the agent runs
 */
export function detachNode(at: NodeDatapath): void {
  const lock = lockWithoutAgent(at);
  try {
    detachLocked(at);
  } finally {
    lock.release();
  }
}

/** The same, and no pin stays either. Idempotent. @throws CountersignError already-exists while the agent runs */
export function destroyPinned(bpffs: string, node: string, onStep: OnStep = noStep): void {
  if (!existsSync(pinBase(bpffs))) return;
  const lock = lockWithoutAgent({ bpffs, node });
  try {
    detachLocked({ bpffs, node, onStep });
    for (const { pins } of otherVersions(bpffs, node)) removePins(pins, onStep);
    removePins(pinPaths(bpffs, node), onStep);
  } catch (error) {
    lock.release();
    throw error;
  }
  lock.releaseAndRemove();
}

/**
 * One write makes everything pass, in both directions and at every interface, before the first program goes: at no moment is
 * an endpoint open on one side and closed on the other, wherever this process ends. An agent that starts then enforces again.
 */
function detachLocked({ bpffs, node, onStep = noStep }: NodeDatapath): void {
  const known = isPinned(bpffs, node);
  const was = known && withPinnedMaps(bpffs, node, onStep, (maps) => setStopped(maps, true));
  for (const { pins } of otherVersions(bpffs, node)) detachAll(pins, onStep);
  detachAll(pinPaths(bpffs, node), onStep);
  if (known && !was) withPinnedMaps(bpffs, node, onStep, (maps) => setStopped(maps, false));
}
