/** A node's datapath without its agent: read from the pins, or taken away for good. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import type { AddressEntry, AuthEntry, DropCount, EndpointAttachment, PolicyEntry } from '../model/datapath.ts';
import { readAddresses } from './address-table.ts';
import { detachAll } from './attach.ts';
import { readAuthEntries } from './auth-table.ts';
import { readDrops } from './counters.ts';
import { readEndpoints } from './endpoints.ts';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE } from './layout.ts';
import { openMaps, pinnedMaps } from './maps.ts';
import { pinPaths, removePins } from './pins.ts';
import { readPolicy } from './policy-table.ts';

/** What is in force in the kernel now. */
export interface PinnedState {
  readonly revision: bigint;
  readonly epoch: number;
  readonly allowUnboundPath: boolean;
  readonly observe: boolean;
  readonly auth: readonly AuthEntry[];
  readonly addresses: readonly AddressEntry[];
  readonly endpoints: readonly EndpointAttachment[];
  readonly policy: readonly PolicyEntry[];
  /** The kernel's own; what the agent dropped from the hold queue only the agent knows. */
  readonly drops: readonly DropCount[];
}

/** @throws CountersignError not-found when nothing is pinned for this node. */
export function readPinned(bpffs: string, node: string): PinnedState {
  const pins = pinPaths(bpffs, node);
  if (!existsSync(join(pins.maps, 'cs_config'))) {
    throw new CountersignError('not-found', `no datapath of node ${node} is pinned under ${bpffs}`);
  }
  const fds: number[] = [];
  try {
    const infos = Object.keys(pinnedMaps).map((name) => {
      const fd = native().objGet(join(pins.maps, name));
      fds.push(fd);
      return [name, native().mapInfo(fd)] as const;
    });
    const maps = openMaps(Object.fromEntries(infos));
    const config = maps.cs_config.get({ n: 0 })!;
    return {
      revision: config.revision,
      epoch: config.epoch,
      allowUnboundPath: (config.flags & CFG_ALLOW_UNBOUND) !== 0,
      observe: (config.flags & CFG_OBSERVE) !== 0,
      auth: readAuthEntries(maps),
      addresses: readAddresses(maps),
      endpoints: readEndpoints(maps),
      policy: readPolicy(maps, config.policy_slot),
      drops: readDrops(maps),
    };
  } finally {
    for (const fd of fds) native().closeFd(fd);
  }
}

/** Detaches every program and removes every pin of the node. Must run in the node's network namespace. Idempotent. */
export function destroyPinned(bpffs: string, node: string): void {
  const pins = pinPaths(bpffs, node);
  detachAll(pins);
  removePins(pins);
}
