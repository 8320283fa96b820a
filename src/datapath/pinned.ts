/** A node's datapath without its agent: its maps, opened from the pins, and what they say. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import type {
  AddressEntry,
  AuthEntry,
  DropCount,
  EndpointAttachment,
  Fence,
  PolicyClassRow,
  PolicyEntry,
} from '../model/datapath.ts';
import { readAddresses } from './address-table.ts';
import { readAuthEntries } from './auth-table.ts';
import { readClasses } from './class-table.ts';
import { readDrops, readObserved } from './counters.ts';
import { readEndpoints } from './endpoints.ts';
import { readFences } from './fence-table.ts';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE, CFG_STOPPED } from './layout.ts';
import { type DatapathMaps, openMaps, pinnedMaps } from './maps.ts';
import { pinPaths } from './pins.ts';
import { readPolicy } from './policy-table.ts';
import { noStep, type OnStep } from './steps.ts';

/** What is in force in the kernel now. */
export interface PinnedState {
  readonly revision: bigint;
  readonly epoch: number;
  readonly allowUnboundPath: boolean;
  readonly observe: boolean;
  readonly stopped: boolean;
  readonly auth: readonly AuthEntry[];
  readonly addresses: readonly AddressEntry[];
  readonly endpoints: readonly EndpointAttachment[];
  readonly fences: readonly Fence[];
  readonly policy: readonly PolicyEntry[];
  readonly classes: readonly PolicyClassRow[];
  /** The kernel's own; what the agent dropped from the hold queue only the agent knows. */
  readonly drops: readonly DropCount[];
  readonly observed: readonly DropCount[];
}

/** @throws CountersignError not-found when nothing is pinned for this node. */
export function readPinned(bpffs: string, node: string): PinnedState {
  return withPinnedMaps(bpffs, node, noStep, (maps) => {
    const config = maps.cs_config.get({ n: 0 })!;
    return {
      revision: config.revision,
      epoch: config.epoch,
      allowUnboundPath: (config.flags & CFG_ALLOW_UNBOUND) !== 0,
      observe: (config.flags & CFG_OBSERVE) !== 0,
      stopped: (config.flags & CFG_STOPPED) !== 0,
      auth: readAuthEntries(maps),
      addresses: readAddresses(maps),
      endpoints: readEndpoints(maps),
      fences: readFences(maps),
      policy: readPolicy(maps, config.policy_slot),
      classes: readClasses(maps, config.policy_slot),
      drops: readDrops(maps),
      observed: readObserved(maps),
    };
  });
}

/** True when an agent of this build's map layout has ever run for the node, since boot or uninstall. */
export function isPinned(bpffs: string, node: string): boolean {
  return existsSync(join(pinPaths(bpffs, node).maps, 'cs_config'));
}

/** @throws CountersignError not-found when nothing is pinned for this node. */
export function withPinnedMaps<T>(bpffs: string, node: string, onStep: OnStep, use: (maps: DatapathMaps) => T): T {
  const pins = pinPaths(bpffs, node);
  if (!isPinned(bpffs, node)) {
    throw new CountersignError(
      'not-found',
      `no datapath of node ${node} is pinned under ${bpffs}: name the node as its agent does, and the mount point with --bpffs`,
    );
  }
  const fds: number[] = [];
  try {
    const infos = Object.keys(pinnedMaps).map((name) => {
      const fd = native().objGet(join(pins.maps, name));
      fds.push(fd);
      return [name, native().mapInfo(fd)] as const;
    });
    return use(openMaps(Object.fromEntries(infos), onStep));
  } finally {
    for (const fd of fds) native().closeFd(fd);
  }
}
