/**
 * The host's side of leases and fences: says to a peer who this node's endpoints are (rule 1, Vouch), takes it back
 * (rule 4, Withdraw) and keeps a successor on an address shut until every peer that may still believe the earlier owner
 * has let go (rule 5, Fence) and the owner's last packets have drained (rule 6). Time alone never opens a fence.
 *
 * The fence is one for each address, not yet one for each peer: a dead peer that holds a lease keeps a successor shut until it comes
 * back and acks, or until the operator takes the node out of the registry (`forgetNode`): only a person can say that it is dead.
 */
import { FrameType, Reset, Withdraw } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { CountersignError } from '../base/errors.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressWireBytes } from '../model/address.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId, SecurityIdentity, SpiffeId } from '../model/ids.ts';
import type { AuthSettings } from './ports.ts';
import { laterOf, nsOfMs } from './units.ts';

/** One workload of this node, as others shall know it. */
export interface OwnEndpoint {
  readonly endpoint: number;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly addresses: readonly IpAddress[];
}

/** What the host vouches: `generation` rises with every endpoint within an incarnation. */
export interface HostedEndpoint extends OwnEndpoint {
  readonly generation: bigint;
  /** False while fenced. */
  readonly open: boolean;
}

export interface VouchHostOptions {
  /** Of this node's SVID. */
  readonly incarnation: bigint;
  /** Above every generation ever used with this incarnation, e.g. Unix time in ns at the agent's start. */
  readonly firstGeneration: bigint;
  /** True only if the node was attested just now, so that no peer can hold a vouch of an earlier life of this agent. */
  readonly firstLife: boolean;
  readonly settings: Pick<AuthSettings, 'leaseMs' | 'drainMs'>;
  /** All nodes but this one. */
  peers(): readonly NodeInfo[];
  channelTo(node: NodeInfo): PeerChannel | undefined;
  /** Opens a channel, so that a withdraw can be said. Failures are not reported; the host asks again. */
  dial(node: NodeInfo): void;
  /** The fence is open: the datapath lets the endpoint send and receive from here on. */
  opened(endpoint: HostedEndpoint): void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
}

interface Hosted extends OwnEndpoint {
  readonly generation: bigint;
  open: boolean;
}

/** A peer may act on a vouch of this generation, or an earlier one, until it says that it let go. */
interface Grant {
  generation: bigint;
  /** When the lease ends by this node's clock: for `list` and for renewal, never for the fence. */
  untilNs: bigint;
}

interface Session {
  resetAcked: boolean;
  /** Withdraws on this channel that wait for their ack. */
  readonly pending: Map<bigint, readonly { address: IpAddress; generation: bigint }[]>;
}

const REDIAL_MS = 1_000;
/** Withdrawn addresses in one frame: 64 KiB hold far more. */
const WITHDRAW_BATCH = 1_024;

export class VouchHost {
  readonly #options: VouchHostOptions;
  readonly #endpoints = new Map<number, Hosted>();
  readonly #owners = new Map<IpAddress, Hosted>();
  /** Open endpoints of each identity. */
  readonly #open = new Map<SecurityIdentity, number>();
  readonly #grants = new Map<IpAddress, Map<NodeId, Grant>>();
  readonly #closedAtNs = new Map<IpAddress, bigint>();
  readonly #met = new Set<IpAddress>();
  readonly #sessions = new Map<PeerChannel, Session>();
  readonly #redials = new Map<NodeId, () => void>();
  #nextGeneration: bigint;
  #nextWithdraw = 1n;

  constructor(options: VouchHostOptions) {
    this.#options = options;
    this.#nextGeneration = options.firstGeneration;
  }

  /**
   * A new endpoint. It is opened (`options.opened`) at once if no peer can believe anybody else on its addresses, else when all
   * have let go. `continues`: the same endpoint as before an agent's restart, with the generation it had; it was open and stays so.
   * @throws CountersignError already-exists when an address or the number is taken.
   */
  add(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint {
    if (this.#endpoints.has(endpoint.endpoint)) {
      throw new CountersignError('already-exists', `endpoint ${endpoint.endpoint} exists; close it first`);
    }
    for (const address of endpoint.addresses) {
      const owner = this.#owners.get(address);
      if (owner !== undefined) {
        throw new CountersignError(
          'already-exists',
          `${address} belongs to endpoint ${owner.endpoint}; close it first`,
        );
      }
    }
    const generation = continues ?? this.#nextGeneration;
    if (generation >= this.#nextGeneration) this.#nextGeneration = generation;
    this.#nextGeneration += 1n;
    const hosted: Hosted = { ...endpoint, generation, open: false };
    this.#endpoints.set(hosted.endpoint, hosted);
    for (const address of hosted.addresses) {
      this.#owners.set(address, hosted);
      if (continues === undefined) this.#assumeEarlierGrants(address, generation);
      this.#met.add(address);
    }
    if (continues !== undefined) this.#openNow(hosted);
    else this.#tryOpen(hosted);
    this.#withdrawOwed();
    return { ...hosted };
  }

  /** Its veth is gone and its queues are flushed: from now on nobody may be told that it lives. Unknown numbers are ignored.
   *  Returns whose it was. */
  close(endpoint: number): SecurityIdentity | undefined {
    const hosted = this.#endpoints.get(endpoint);
    if (hosted === undefined) return undefined;
    this.#endpoints.delete(endpoint);
    if (hosted.open) this.#countOpen(hosted.identity, -1);
    for (const address of hosted.addresses) {
      this.#owners.delete(address);
      this.#closedAtNs.set(address, this.#options.clock.bootNs());
    }
    this.#withdrawOwed();
    return hosted.identity;
  }

  at(address: IpAddress): HostedEndpoint | undefined {
    return this.#owners.get(address);
  }

  /** Does an open endpoint of this node have the identity? */
  hosts(identity: SecurityIdentity): boolean {
    return this.#open.has(identity);
  }

  /** Of open endpoints. */
  openIdentities(): Iterable<SecurityIdentity> {
    return this.#open.keys();
  }

  /** Does the peer hold a lease on the address's present owner, with at least a third of it left? */
  isKnownTo(peer: NodeId, address: IpAddress): boolean {
    const owner = this.#owners.get(address);
    const grant = this.#grants.get(address)?.get(peer);
    if (owner === undefined || grant === undefined || grant.generation !== owner.generation) return false;
    return grant.untilNs - this.#options.clock.bootNs() > nsOfMs(this.#options.settings.leaseMs) / 3n;
  }

  list(): {
    endpoint: HostedEndpoint;
    waitsFor: NodeId[];
    grants: { peer: NodeId; address: IpAddress; untilNs: bigint }[];
  }[] {
    return [...this.#endpoints.values()].map((hosted) => ({
      endpoint: { ...hosted },
      waitsFor: [...new Set(hosted.addresses.flatMap((address) => this.#owedTo(address)))],
      grants: hosted.addresses.flatMap((address) =>
        [...(this.#grants.get(address) ?? [])].map(([peer, grant]) => ({ peer, address, untilNs: grant.untilNs })),
      ),
    }));
  }

  /** RESET is the first thing a peer hears. Nothing is vouched on the channel before it is acked. */
  channelOpened(channel: PeerChannel): void {
    this.#sessions.set(channel, { resetAcked: false, pending: new Map() });
    channel.send(
      FrameType.FRAME_TYPE_RESET,
      Reset.encode({ incarnation: this.#options.incarnation, keeps: [], more: false }).finish(),
    );
  }

  channelClosed(channel: PeerChannel): void {
    this.#sessions.delete(channel);
    this.#withdrawOwed();
  }

  /** False: an ack of something else than was said; the channel must close. */
  resetAcked(channel: PeerChannel, incarnation: bigint): boolean {
    const session = this.#sessions.get(channel);
    if (session === undefined || session.resetAcked || incarnation !== this.#options.incarnation) return false;
    session.resetAcked = true;
    this.#withdrawOwed();
    return true;
  }

  withdrawAcked(channel: PeerChannel, id: bigint): boolean {
    const session = this.#sessions.get(channel);
    const said = session?.pending.get(id);
    if (session === undefined || said === undefined) return false;
    session.pending.delete(id);
    for (const { address, generation } of said) {
      const grants = this.#grants.get(address);
      const grant = grants?.get(channel.peer.id);
      if (grants === undefined || grant === undefined || grant.generation > generation) continue;
      grants.delete(channel.peer.id);
      if (grants.size === 0) this.#grants.delete(address);
      this.#options.audit.emit({
        kind: 'vouch.withdrawn',
        source: { address },
        destination: { node: channel.peer.name },
        detail: { generation: String(generation), acked: true },
      });
    }
    this.#openAll();
    return true;
  }

  /**
   * Rule 1: only open endpoints are vouched for. undefined: the peer asks before it let go of earlier lives (rule 3), which
   * no honest peer does. Remembers that the peer now holds a lease.
   */
  vouch(
    channel: PeerChannel,
    addresses: readonly IpAddress[],
  ): { address: IpAddress; owner: HostedEndpoint }[] | undefined {
    const session = this.#sessions.get(channel);
    if (session === undefined || !session.resetAcked) return undefined;
    const untilNs = this.#options.clock.bootNs() + nsOfMs(this.#options.settings.leaseMs);
    const vouches: { address: IpAddress; owner: HostedEndpoint }[] = [];
    for (const address of addresses) {
      const owner = this.#owners.get(address);
      if (owner === undefined || !owner.open) continue;
      const grants = this.#grants.get(address) ?? new Map<NodeId, Grant>();
      this.#grants.set(address, grants);
      const before = grants.get(channel.peer.id);
      grants.set(channel.peer.id, { generation: owner.generation, untilNs });
      if (before?.generation !== owner.generation) {
        this.#options.audit.emit({
          kind: 'vouch.given',
          source: { address, identity: owner.identity, spiffeId: owner.spiffeId },
          destination: { node: channel.peer.name },
          detail: { generation: String(owner.generation), lease_ms: this.#options.settings.leaseMs },
        });
      }
      vouches.push({ address, owner: { ...owner } });
    }
    return vouches;
  }

  /** The operator took the node out of the registry: nothing of it passes any more, so nobody waits for its acks. */
  forgetNode(node: NodeId): void {
    for (const [address, grants] of this.#grants) {
      grants.delete(node);
      if (grants.size === 0) this.#grants.delete(address);
    }
    this.#redials.get(node)?.();
    this.#redials.delete(node);
    this.#openAll();
  }

  /** Rule 3: after a restart every peer counts as holding a lease on an address that this life has not had yet. */
  #assumeEarlierGrants(address: IpAddress, generation: bigint): void {
    if (this.#options.firstLife || this.#met.has(address)) return;
    const grants = this.#grants.get(address) ?? new Map<NodeId, Grant>();
    for (const node of this.#options.peers()) grants.set(node.id, { generation: generation - 1n, untilNs: 0n });
    if (grants.size > 0) this.#grants.set(address, grants);
  }

  /** Peers that may believe an earlier owner of the address. */
  #owedTo(address: IpAddress): NodeId[] {
    const generation = this.#owners.get(address)?.generation;
    const owed: NodeId[] = [];
    for (const [node, grant] of this.#grants.get(address) ?? []) {
      if (generation === undefined || grant.generation < generation) owed.push(node);
    }
    return owed;
  }

  #openAll(): void {
    for (const hosted of this.#endpoints.values()) if (!hosted.open) this.#tryOpen(hosted);
  }

  #tryOpen(hosted: Hosted): void {
    if (this.#endpoints.get(hosted.endpoint) !== hosted || hosted.open) return;
    if (hosted.addresses.some((address) => this.#owedTo(address).length > 0)) return;
    const waitNs = hosted.addresses.map((address) => this.#drainLeftNs(address)).reduce(laterOf, 0n);
    if (waitNs > 0n) {
      this.#options.timers.set(Number(waitNs / 1_000_000n) + 1, () => this.#tryOpen(hosted));
      return;
    }
    this.#openNow(hosted);
  }

  #openNow(hosted: Hosted): void {
    hosted.open = true;
    this.#countOpen(hosted.identity, 1);
    for (const address of hosted.addresses) this.#closedAtNs.delete(address);
    this.#options.opened({ ...hosted });
  }

  #countOpen(identity: SecurityIdentity, change: 1 | -1): void {
    const count = (this.#open.get(identity) ?? 0) + change;
    if (count === 0) this.#open.delete(identity);
    else this.#open.set(identity, count);
  }

  #drainLeftNs(address: IpAddress): bigint {
    const closedAtNs = this.#closedAtNs.get(address);
    if (closedAtNs === undefined) return 0n;
    return closedAtNs + nsOfMs(this.#options.settings.drainMs) - this.#options.clock.bootNs();
  }

  /** Says to every peer what it has not been told yet, or dials it. */
  #withdrawOwed(): void {
    const owed = new Map<NodeId, { address: IpAddress; generation: bigint }[]>();
    for (const address of this.#grants.keys()) {
      for (const node of this.#owedTo(address)) {
        const list = owed.get(node) ?? [];
        owed.set(node, list);
        list.push({ address, generation: this.#grants.get(address)!.get(node)!.generation });
      }
    }
    for (const [id, addresses] of owed) {
      const node = this.#options.peers().find((peer) => peer.id === id);
      if (node === undefined) continue;
      const channel = this.#options.channelTo(node);
      const session = channel === undefined ? undefined : this.#sessions.get(channel);
      if (channel === undefined || session === undefined) this.#redial(node, addresses);
      else if (session.resetAcked) this.#withdraw(channel, session, addresses);
    }
  }

  #withdraw(channel: PeerChannel, session: Session, owed: readonly { address: IpAddress; generation: bigint }[]): void {
    const said = new Map([...session.pending.values()].flat().map(({ address, generation }) => [address, generation]));
    const news = owed.filter(({ address, generation }) => (said.get(address) ?? -1n) < generation);
    for (let at = 0; at < news.length; at += WITHDRAW_BATCH) {
      const batch = news.slice(at, at + WITHDRAW_BATCH);
      const id = this.#nextWithdraw++;
      session.pending.set(id, batch);
      channel.send(
        FrameType.FRAME_TYPE_WITHDRAW,
        Withdraw.encode({
          id,
          incarnation: this.#options.incarnation,
          addresses: batch.map(({ address, generation }) => ({ address: addressWireBytes(address), generation })),
        }).finish(),
      );
    }
  }

  /** A successor waits, or the lease may still live: worth a channel. Else the next channel will carry it. */
  #redial(node: NodeInfo, owed: readonly { address: IpAddress }[]): void {
    const now = this.#options.clock.bootNs();
    const matters = owed.some(
      ({ address }) => this.#owners.has(address) || (this.#grants.get(address)?.get(node.id)?.untilNs ?? 0n) > now,
    );
    if (!matters || this.#redials.has(node.id)) return;
    this.#options.dial(node);
    this.#redials.set(
      node.id,
      this.#options.timers.set(REDIAL_MS, () => {
        this.#redials.delete(node.id);
        this.#withdrawOwed();
      }),
    );
  }
}
