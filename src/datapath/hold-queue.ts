/**
 * Where a first packet waits while two nodes authenticate: after the kernel's redirect into the hold device, before
 * src/auth says how it ended. Queued by the pair of addresses, bounded, each packet with a deadline. A released packet
 * goes through the full check again, so nothing here can let anything pass that the kernel would not.
 */
import type { Clock } from '../base/clock.ts';
import { unreachable } from '../base/errors.ts';
import type { DropReason } from '../base/registry/drop-reasons.gen.ts';
import type { FlowPorts, HoldQueue } from '../model/datapath.ts';
import type { IpAddress, SecurityIdentity } from '../model/ids.ts';
import { packetAddresses, packetFlow } from './ip-header.ts';

/** How long a refusal also goes for packets that were still in the device when it was known. */
const refusedForNs = 100_000_000n;
/** The same for a release; longer than the kernel lets packets queue behind earlier ones of their flow (CS_WAITING_LIMIT).
 *  A released packet is judged again and never held twice, so a release of too much lets nothing pass and cannot circle. */
const releasedForNs = 1_200_000_000n;

export interface HoldQueueOptions {
  readonly limitPerIdentity: number;
  readonly limitTotal: number;
  readonly deadlineMs: number;
  readonly clock: Clock;
  /** CLOCK_BOOTTIME: a packet that comes to `accept` now was put into the device no earlier. Default: now. */
  heldSinceNs?(): bigint;
  /** Calls back once after `ms`; returns the way to cancel. Default: setTimeout, not keeping the process alive. */
  readonly timer?: (ms: number, fire: () => void) => () => void;
  /** Identity of an own endpoint's address; undefined: not (or no longer) one of ours. */
  identityOf(local: IpAddress): SecurityIdentity | undefined;
  /** Back into the device. False: it did not take it. */
  write(packet: Buffer): boolean;
  /** So many packets of this identity (undefined: not known) have left the queue, one way or the other. */
  left(identity: SecurityIdentity | undefined, packets: number): void;
  dropped(reason: DropReason, bytes: number): void;
}

interface Waiting {
  readonly local: IpAddress;
  readonly remote: IpAddress;
  readonly identity: SecurityIdentity;
  /** Oldest first. */
  readonly packets: Held[];
}

interface Held {
  readonly bytes: Buffer;
  readonly sinceNs: bigint;
}

type Fate =
  | { readonly kind: 'drop'; readonly reason: DropReason; readonly identity: SecurityIdentity | undefined }
  | { readonly kind: 'pass'; readonly identity: SecurityIdentity }
  | {
      readonly kind: 'wait';
      readonly local: IpAddress;
      readonly remote: IpAddress;
      readonly identity: SecurityIdentity;
      readonly sinceNs: bigint;
    };

interface Settled {
  readonly local: IpAddress;
  readonly remote: IpAddress;
  readonly outcome: 'release' | DropReason;
  /** Of a release: what was held before goes to nobody. */
  readonly sinceNs: bigint;
  readonly untilNs: bigint;
}

export class PacketHold implements HoldQueue {
  readonly #options: HoldQueueOptions;
  readonly #pairs = new Map<string, Waiting>();
  readonly #settled = new Map<string, Settled>();
  /** Packets waiting of each identity. */
  readonly #waiting = new Map<SecurityIdentity, number>();
  #total = 0;
  #cancelTimer: (() => void) | undefined;

  constructor(options: HoldQueueOptions) {
    this.#options = options;
  }

  /** One packet read from the hold device. */
  accept(packet: Buffer): void {
    const fate = this.#decide(packet);
    switch (fate.kind) {
      case 'drop':
        this.#options.dropped(fate.reason, packet.length);
        this.#options.left(fate.identity, 1);
        break;
      case 'pass':
        this.#writeBack(fate.identity, [packet]);
        break;
      case 'wait': {
        const name = pairName(fate.local, fate.remote);
        const pair = this.#pairs.get(name) ?? {
          local: fate.local,
          remote: fate.remote,
          identity: fate.identity,
          packets: [],
        };
        pair.packets.push({ bytes: packet, sinceNs: fate.sinceNs });
        this.#pairs.set(name, pair);
        this.#count(fate.identity, 1);
        this.#arm();
        break;
      }
      default:
        unreachable(fate);
    }
  }

  #decide(packet: Buffer): Fate {
    const addresses = packetAddresses(packet);
    if (addresses === undefined) return { kind: 'drop', reason: 'INVALID_PACKET', identity: undefined };
    const { source: local, destination: remote } = addresses;
    const identity = this.#options.identityOf(local);
    // The stack reports the groups of every device to its link, this one too.
    if (identity === undefined && isLinkMulticast(remote)) return { kind: 'drop', reason: 'MEMBERSHIP', identity };
    // Either the endpoint went while its packet was on the way, or somebody routed a packet into the device.
    if (identity === undefined) return { kind: 'drop', reason: 'NO_ENDPOINT', identity };
    const sinceNs = this.#options.heldSinceNs?.() ?? this.#options.clock.bootNs();
    const settled =
      this.#settledOf(settledName(local, remote, packetFlow(packet))) ?? this.#settledOf(pairName(local, remote));
    if (settled?.outcome === 'release') {
      return sinceNs < settled.sinceNs ? { kind: 'drop', reason: 'HOLD_STALE', identity } : { kind: 'pass', identity };
    }
    if (settled !== undefined) return { kind: 'drop', reason: settled.outcome, identity };
    if (
      this.#total >= this.#options.limitTotal ||
      (this.#waiting.get(identity) ?? 0) >= this.#options.limitPerIdentity
    ) {
      return { kind: 'drop', reason: 'HOLD_FULL', identity };
    }
    return { kind: 'wait', local, remote, identity, sinceNs };
  }

  release(local: IpAddress, remote: IpAddress, sinceNs = 0n, flow?: FlowPorts): number {
    const pair = this.#take(local, remote, flow);
    this.#settle(local, remote, 'release', sinceNs, flow);
    if (pair === undefined) return 0;
    const fresh = pair.packets.filter((packet) => packet.sinceNs >= sinceNs);
    this.#writeBack(
      pair.identity,
      fresh.map(({ bytes }) => bytes),
    );
    const stale = pair.packets.filter((packet) => packet.sinceNs < sinceNs);
    this.#dropPair({ ...pair, packets: stale }, 'HOLD_STALE');
    return fresh.length;
  }

  forget(remote: IpAddress): void {
    for (const [name, settled] of this.#settled) if (settled.remote === remote) this.#settled.delete(name);
  }

  refuse(local: IpAddress, remote: IpAddress, reason: DropReason, flow?: FlowPorts): number {
    const pair = this.#take(local, remote, flow);
    this.#settle(local, remote, reason, 0n, flow);
    return pair === undefined ? 0 : this.#dropPair(pair, reason);
  }

  waiting(): { local: IpAddress; remote: IpAddress; packets: number; sinceNs: bigint }[] {
    return [...this.#pairs.values()].map(({ local, remote, packets }) => ({
      local,
      remote,
      packets: packets.length,
      sinceNs: packets[0]!.sinceNs,
    }));
  }

  /** Drops all that this endpoint address sent; also what was settled for it. */
  dropAddress(local: IpAddress): void {
    for (const [name, settled] of this.#settled) if (settled.local === local) this.#settled.delete(name);
    for (const pair of [...this.#pairs.values()]) {
      if (pair.local !== local) continue;
      this.#take(pair.local, pair.remote);
      this.#dropPair(pair, 'NO_ENDPOINT');
    }
  }

  isEmpty(): boolean {
    return this.#total === 0;
  }

  /** Drops everything: the agent ends. */
  close(): void {
    for (const pair of [...this.#pairs.values()]) {
      this.#take(pair.local, pair.remote);
      this.#dropPair(pair, 'HOLD_REFUSED');
    }
    this.#settled.clear();
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #expire(): void {
    const now = this.#options.clock.bootNs();
    const deadline = now - BigInt(this.#options.deadlineMs) * 1_000_000n;
    for (const [name, pair] of this.#pairs) {
      let expired = 0;
      while (expired < pair.packets.length && pair.packets[expired]!.sinceNs <= deadline) expired++;
      if (expired === 0) continue;
      const gone = pair.packets.splice(0, expired);
      this.#count(pair.identity, -expired);
      if (pair.packets.length === 0) this.#pairs.delete(name);
      this.#dropPair({ ...pair, packets: gone }, 'HOLD_DEADLINE');
    }
    for (const [name, { untilNs }] of this.#settled) if (untilNs <= now) this.#settled.delete(name);
    this.#arm();
  }

  #arm(): void {
    if (this.#cancelTimer !== undefined || (this.#total === 0 && this.#settled.size === 0)) return;
    let oldest = this.#options.clock.bootNs();
    for (const { packets } of this.#pairs.values()) if (packets[0]!.sinceNs < oldest) oldest = packets[0]!.sinceNs;
    const dueNs = oldest + BigInt(this.#options.deadlineMs) * 1_000_000n - this.#options.clock.bootNs();
    // A millisecond more than due: timers fire early by rounding, and would then be armed once again for nothing.
    const ms = Math.max(1, Number(dueNs / 1_000_000n) + 1);
    const timer = this.#options.timer ?? unrefTimeout;
    this.#cancelTimer = timer(ms, () => {
      this.#cancelTimer = undefined;
      this.#expire();
    });
  }

  #settle(local: IpAddress, remote: IpAddress, outcome: Settled['outcome'], sinceNs: bigint, flow?: FlowPorts): void {
    const untilNs = this.#options.clock.bootNs() + (outcome === 'release' ? releasedForNs : refusedForNs);
    this.#settled.set(settledName(local, remote, flow), { local, remote, outcome, sinceNs, untilNs });
    this.#arm();
  }

  #settledOf(name: string): Settled | undefined {
    const settled = this.#settled.get(name);
    if (settled === undefined) return undefined;
    if (settled.untilNs <= this.#options.clock.bootNs()) {
      this.#settled.delete(name);
      return undefined;
    }
    return settled;
  }

  /** Out of the queue; with a flow only what may be of it, the others go on waiting. */
  #take(local: IpAddress, remote: IpAddress, flow?: FlowPorts): Waiting | undefined {
    const name = pairName(local, remote);
    const pair = this.#pairs.get(name);
    if (pair === undefined) return undefined;
    const isOf = ({ bytes }: Held) => flow === undefined || isSameFlow(packetFlow(bytes) ?? flow, flow);
    const taken = pair.packets.filter(isOf);
    const others = pair.packets.filter((packet) => !isOf(packet));
    if (others.length === 0) this.#pairs.delete(name);
    else this.#pairs.set(name, { ...pair, packets: others });
    this.#count(pair.identity, -taken.length);
    return { ...pair, packets: taken };
  }

  #writeBack(identity: SecurityIdentity, packets: readonly Buffer[]): void {
    for (const packet of packets) {
      if (!this.#options.write(packet)) this.#options.dropped('HOLD_FAILED', packet.length);
    }
    this.#options.left(identity, packets.length);
  }

  #dropPair(pair: Waiting, reason: DropReason): number {
    if (pair.packets.length === 0) return 0;
    for (const { bytes } of pair.packets) this.#options.dropped(reason, bytes.length);
    this.#options.left(pair.identity, pair.packets.length);
    return pair.packets.length;
  }

  #count(identity: SecurityIdentity, packets: number): void {
    this.#total += packets;
    const waiting = (this.#waiting.get(identity) ?? 0) + packets;
    if (waiting === 0) this.#waiting.delete(identity);
    else this.#waiting.set(identity, waiting);
  }
}

function pairName(local: IpAddress, remote: IpAddress): string {
  return `${local} ${remote}`;
}

function settledName(local: IpAddress, remote: IpAddress, flow: FlowPorts | undefined): string {
  const pair = pairName(local, remote);
  return flow === undefined ? pair : `${pair} ${flow.protocol} ${flow.localPort} ${flow.remotePort}`;
}

const isSameFlow = (a: FlowPorts, b: FlowPorts): boolean =>
  a.protocol === b.protocol && a.localPort === b.localPort && a.remotePort === b.remotePort;

function unrefTimeout(ms: number, fire: () => void): () => void {
  const timer = setTimeout(fire, ms);
  timer.unref();
  return () => clearTimeout(timer);
}

/** 224.0.0.0/24 and ff02::/16. */
function isLinkMulticast(address: IpAddress): boolean {
  return address.startsWith('224.0.0.') || address.startsWith('ff02:');
}
