/** Channels that something alive rests on come back: leases and entries need them, and without one they run out. */
import type { Logger } from '../base/log.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannels } from '../channel/peer-channel.ts';
import type { NodeInfo, NodeTable } from '../model/identity.ts';
import type { NodeId } from '../model/ids.ts';
import type { BackoffLimits } from './backoff.ts';

export interface RedialOptions {
  readonly channels: PeerChannels;
  readonly nodes: NodeTable;
  /** Does anything that lives rest on a channel to the node? */
  isNeeded(node: NodeId): boolean;
  readonly settings: BackoffLimits;
  readonly timers: Timers;
  readonly random: () => number;
  readonly log: Logger;
}

const FIRST_REDIAL_MS = 50;

export class Redial {
  readonly #options: RedialOptions;
  readonly #tries = new Map<NodeId, number>();

  constructor(options: RedialOptions) {
    this.#options = options;
  }

  /** Opens the channel if there is none. Why not; undefined: it is open. */
  async open(node: NodeInfo): Promise<ReasonCode | undefined> {
    const { channels, log } = this.#options;
    if (channels.get(node) !== undefined) return undefined;
    try {
      await channels.open(node);
      return undefined;
    } catch (thrown) {
      log.debug({ err: thrown, node: node.name }, 'no channel');
      return reasonOfDial(thrown);
    }
  }

  opened(node: NodeInfo): void {
    this.#tries.delete(node.id);
  }

  closed(node: NodeInfo): void {
    const { timers, random, nodes, settings } = this.#options;
    if (!this.#isWanted(node) || this.#tries.has(node.id)) return;
    this.#tries.set(node.id, 0);
    const attempt = () => {
      const tries = this.#tries.get(node.id);
      if (tries === undefined) return;
      if (!this.#isWanted(node)) {
        this.#tries.delete(node.id);
        return;
      }
      this.#tries.set(node.id, tries + 1);
      const { backoffMinMs, backoffMaxMs } = settings;
      const waitMs = Math.min(backoffMaxMs, backoffMinMs * 2 ** Math.min(tries, 10));
      timers.set(waitMs * (0.5 + 0.5 * random()), attempt);
      void this.open(nodes.byId(node.id) ?? node);
    };
    timers.set(FIRST_REDIAL_MS, attempt);
  }

  #isWanted(node: NodeInfo): boolean {
    const { channels, nodes, isNeeded } = this.#options;
    return channels.get(node) === undefined && nodes.byId(node.id) !== undefined && isNeeded(node.id);
  }
}

/** PeerChannels.open rejects with an error that carries a reason code. */
export function reasonOfDial(thrown: unknown): ReasonCode {
  const reason = typeof thrown === 'object' && thrown !== null && 'reason' in thrown ? thrown.reason : undefined;
  return typeof reason === 'string' && Object.hasOwn(reasonCodes, reason) ? (reason as ReasonCode) : 'PEER_UNREACHABLE';
}
