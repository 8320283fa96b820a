/**
 * A packet's story, where the agent learns of a miss: find out who the other side is (vouch), whether policy wants proof, prove it, and
 * let the held packets go, or drop them with a reason. A miss at the receiver holds nothing: it makes the next packet pass.
 */
import { type Flow, FrameType, Miss } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel, PeerChannels } from '../channel/peer-channel.ts';
import { addressFromBytes } from '../model/address.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthKey, AuthType, DatapathSignal, FlowTuple, HoldQueue } from '../model/datapath.ts';
import type { IdentityTable, NodeInfo, NodeTable } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type SecurityIdentity, type SpiffeId } from '../model/ids.ts';
import type { Backoff } from './backoff.ts';
import { flowMessage } from './exchange.ts';
import { type FlowProofs, flowText } from './flow-proofs.ts';
import type { PairAuthenticator } from './pair-authenticator.ts';
import type { AuthSettings, PolicyDecisions } from './ports.ts';
import { reasonOfDial } from './redial.ts';
import { nsOfMs } from './units.ts';
import type { KnownVouch } from './vouch-book.ts';
import type { VouchClient } from './vouch-client.ts';
import type { VouchHost } from './vouch-host.ts';

export interface HeldPacketsOptions {
  readonly selfSpiffeId: SpiffeId;
  readonly hold: HoldQueue;
  readonly channels: PeerChannels;
  readonly nodes: NodeTable;
  readonly identities: IdentityTable;
  readonly vouches: VouchClient;
  readonly host: VouchHost;
  readonly pairs: PairAuthenticator;
  readonly flows: FlowProofs;
  policy(): PolicyDecisions;
  /** By pair of addresses: what failed before the other side's identity was known. */
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly log: Logger;
}

type Step = Result<void, ReasonCode>;

const GO: Step = { ok: true, value: undefined };

/** Who hosts the other side's address, by its own word. */
interface Found {
  readonly node: NodeInfo;
  readonly vouch: KnownVouch;
}

/** MISS frames are said and heeded at most once for each key in this time. */
const MISS_INTERVAL_MS = 1_000;
const MAX_MISS_KEYS = 16_384;
/** What opens a flow of ICMP and ICMPv6: to policy the message's type is its port. */
const ECHO_REQUEST: Readonly<Record<number, number>> = { 1: 8, 58: 128 };

export class HeldPackets {
  readonly #options: HeldPacketsOptions;
  readonly #underWay = new Set<string>();
  readonly #lastMissNs = new Map<string, bigint>();

  constructor(options: HeldPacketsOptions) {
    this.#options = options;
  }

  signal(signal: DatapathSignal) {
    if (signal.kind !== 'vouch-miss' && signal.kind !== 'auth-miss') return;
    const flow = isOfFlow(signal) ? ` ${flowText(signal)}` : '';
    const key = `${signal.kind}|${signal.direction}|${addressKey(signal)}${flow}`;
    if (this.#underWay.has(key)) return;
    if (this.#options.backoff.isWaiting(addressKey(signal), this.#options.clock.bootNs())) {
      return this.#finish(signal, err('AUTH_BACKOFF'));
    }
    if (this.#underWay.size >= this.#options.settings.queueSize) {
      return this.#finish(signal, this.#failed(signal, 'AUTH_QUEUE_FULL'));
    }
    this.#underWay.add(key);
    const work = signal.direction === 'egress' ? this.#atSender(signal) : this.#atReceiver(signal);
    void work
      .catch((thrown): Step => {
        this.#options.log.error({ err: thrown }, 'a miss could not be worked on');
        return err('AUTH_REFUSED');
      })
      .then((step) => {
        this.#underWay.delete(key);
        this.#finish(signal, step);
      });
  }

  /** "I met a packet of this pair and have no proof": proves again, whatever the own table holds. @throws on a malformed body. */
  onMiss(channel: PeerChannel, body: Buffer) {
    const { localIdentity, remoteIdentity, flow } = Miss.decode(body);
    const local = remoteIdentity as SecurityIdentity;
    const remote = localIdentity as SecurityIdentity;
    if (flow !== undefined) return this.#onFlowMiss(channel, local, remote, flow);
    const key: AuthKey = { local, remote, remoteNode: channel.peer.id, authType: 'spiffe' };
    if (!this.#options.host.hosts(local) || !this.#options.policy().authTypesOf(local, remote).includes('spiffe'))
      return;
    if (this.#isTooSoon(`heed|${local}|${remote}|${channel.peer.id}`)) return;
    void this.#options.pairs.authenticate(key, this.#options.clock.bootNs());
  }

  #onFlowMiss(channel: PeerChannel, local: SecurityIdentity, remote: SecurityIdentity, theirs: Flow): void {
    const { host, policy, flows, clock } = this.#options;
    const own = host.at(addressFromBytes(theirs.remoteAddress));
    const flow: FlowTuple = {
      endpoint: own?.endpoint ?? 0,
      localAddress: addressFromBytes(theirs.remoteAddress),
      remoteAddress: addressFromBytes(theirs.localAddress),
      protocol: theirs.protocol,
      localPort: theirs.remotePort,
      remotePort: theirs.localPort,
    };
    if (own?.identity !== local || !own.open) return;
    if (!policy().authTypesOf(local, remote).includes('spiffe-connection')) return;
    if (this.#isTooSoon(`heed|${flowText(flow)}|${channel.peer.id}`)) return;
    const key: AuthKey = { local, remote, remoteNode: channel.peer.id, authType: 'spiffe-connection' };
    void flows.authenticate(key, flow, clock.bootNs());
  }

  /** Both kinds of miss at egress: the packet waits. */
  async #atSender(signal: DatapathSignal): Promise<Step> {
    const { host, pairs } = this.#options;
    const neighbour = host.at(signal.remoteAddress);
    if (neighbour !== undefined) {
      if (!neighbour.open) return this.#failed(signal, 'VOUCH_NOT_HOSTED');
      return this.#prove(signal, neighbour.identity, undefined);
    }
    const found = await this.#find(signal);
    if (!found.ok) return this.#failed(signal, found.error);
    const { node, vouch } = found.value;
    this.#options.backoff.succeeded(addressKey(signal));
    const step = await this.#prove(signal, vouch.identity, node);
    if (step.ok || step.error !== 'AUTH_NOT_VOUCHED') return step;
    // The peer has lost what it was told: tell it again, once.
    const again = await this.#ask(signal, node);
    if (!again.ok) return this.#failed(signal, again.error);
    const { identity } = again.value.vouch;
    for (const authType of ['spiffe', 'spiffe-connection'] as const)
      pairs.forgive({ ...pairOf(signal, identity), remoteNode: node.id, authType });
    return this.#prove(signal, identity, node);
  }

  async #prove(signal: DatapathSignal, remote: SecurityIdentity, node: NodeInfo | undefined): Promise<Step> {
    const authType = this.#demand(signal, remote);
    if (authType === 'none') return GO;
    const key: AuthKey = { ...pairOf(signal, remote), remoteNode: node?.id ?? LOCAL_NODE, authType };
    const { pairs, flows } = this.#options;
    const isOfItsOwn = authType === 'spiffe-connection';
    const outcome = await (isOfItsOwn
      ? flows.authenticate(key, flowOf(signal), signal.timeNs)
      : pairs.authenticate(key, signal.timeNs));
    return outcome.ok ? GO : outcome;
  }

  /** A denied packet goes on too: the kernel drops it with the right name and counts it. */
  #demand(signal: DatapathSignal, remote: SecurityIdentity): AuthType {
    if (signal.kind === 'auth-miss') return signal.authType;
    const port = ECHO_REQUEST[signal.protocol] ?? signal.remotePort;
    const { verdict, authType } = this.#options.policy().decide(signal.localIdentity, remote, signal.protocol, port);
    return verdict === 'deny' ? 'none' : authType;
  }

  /** The packet is gone; the sender's node is told, or asked who its address is. */
  async #atReceiver(signal: DatapathSignal): Promise<Step> {
    if (this.#options.host.at(signal.remoteAddress) !== undefined) return GO;
    if (signal.kind === 'vouch-miss') {
      const found = await this.#find(signal);
      return found.ok ? GO : this.#failed(signal, found.error);
    }
    const node = this.#options.nodes.byId(signal.remoteNode);
    if (node === undefined) return this.#failed(signal, 'VOUCH_NO_NODE');
    const reached = await this.#reach(node);
    if (!reached.ok) return this.#failed(signal, reached.error);
    const { localIdentity, remoteIdentity } = signal;
    const flow = isOfFlow(signal) ? flowMessage(flowOf(signal)) : undefined;
    const of = flow === undefined ? '' : flowText(signal);
    if (this.#isTooSoon(`say|${localIdentity}|${remoteIdentity}|${node.id}|${of}`)) return GO;
    reached.value.send(FrameType.FRAME_TYPE_MISS, Miss.encode({ localIdentity, remoteIdentity, flow }).finish());
    return GO;
  }

  /**
   * The node that vouches for the other side: the one of the kernel's entry, or else the first of those that may host the address to
   * say so. All are asked at once: a dead one costs no time. OtherNodesLeaseWins is kept where their answers are taken.
   */
  async #find(signal: DatapathSignal): Promise<Result<Found, ReasonCode>> {
    const { nodes, selfSpiffeId, vouches, host } = this.#options;
    const { remoteNode, remoteAddress, localAddress } = signal;
    const entry = nodes.byId(remoteNode);
    const all = remoteNode === LOCAL_NODE ? nodes.candidates(remoteAddress) : entry === undefined ? [] : [entry];
    const others = all.filter((node) => node.spiffeId !== selfSpiffeId);
    if (others.length === 0) return err(all.length === 0 ? 'VOUCH_NO_NODE' : 'VOUCH_NOT_HOSTED');
    if (signal.direction === 'egress') {
      for (const node of others) {
        const vouch = vouches.known(node.id, remoteAddress);
        if (vouch === undefined || !host.isKnownTo(node.id, localAddress)) continue;
        // Nothing is to be asked, but the proof needs the channel: it may have gone, and the vouch lives on.
        const reached = await this.#reach(node);
        return reached.ok ? ok({ node, vouch }) : reached;
      }
    }
    return firstOk(others.map((node) => this.#ask(signal, node)));
  }

  async #ask(signal: DatapathSignal, node: NodeInfo): Promise<Result<Found, ReasonCode>> {
    const reached = await this.#reach(node);
    if (!reached.ok) return reached;
    const asked = await this.#options.vouches.ask(reached.value, signal.remoteAddress, [signal.localAddress]);
    return asked.ok ? ok({ node, vouch: asked.value }) : asked;
  }

  async #reach(node: NodeInfo): Promise<Result<PeerChannel, ReasonCode>> {
    const { channels } = this.#options;
    const open = channels.get(node);
    if (open !== undefined) return ok(open);
    try {
      return ok(await channels.open(node));
    } catch (thrown) {
      return err(reasonOfDial(thrown));
    }
  }

  #failed(signal: DatapathSignal, reason: ReasonCode): Step {
    const { backoff, clock, audit, identities } = this.#options;
    backoff.failed(addressKey(signal), reason, clock.bootNs(), clock.nowMs());
    const row = identities.byIdentity(signal.localIdentity);
    audit.emit({
      kind: 'auth.failed',
      reason,
      source: {
        identity: signal.localIdentity,
        address: signal.localAddress,
        ...(row === undefined ? {} : { spiffeId: row.spiffeId }),
      },
      destination: { address: signal.remoteAddress, port: signal.remotePort },
      detail: { direction: signal.direction },
    });
    return err(reason);
  }

  #finish(signal: DatapathSignal, step: Step): void {
    if (signal.direction === 'ingress') return;
    const { localAddress, remoteAddress } = signal;
    const flow = isOfFlow(signal) ? flowOf(signal) : undefined;
    if (step.ok) this.#options.hold.release(localAddress, remoteAddress, this.#meantSince(remoteAddress), flow);
    else {
      const reason = step.error === 'AUTH_ALWAYS_FAIL' ? 'AUTH_ALWAYS_FAIL' : 'HOLD_REFUSED';
      this.#options.hold.refuse(localAddress, remoteAddress, reason, flow);
    }
  }

  /** DrainFlush: what was held before is meant for an earlier owner of the address. */
  #meantSince(remote: IpAddress): bigint | undefined {
    const { host, vouches } = this.#options;
    return host.at(remote) === undefined ? vouches.tables.get(remote)?.ownedSinceNs : host.ownedSinceNs(remote);
  }

  #isTooSoon(key: string): boolean {
    const now = this.#options.clock.bootNs();
    const last = this.#lastMissNs.get(key);
    if (last !== undefined && now - last < nsOfMs(MISS_INTERVAL_MS)) return true;
    this.#lastMissNs.delete(key);
    this.#lastMissNs.set(key, now);
    if (this.#lastMissNs.size > MAX_MISS_KEYS) this.#lastMissNs.delete(this.#lastMissNs.keys().next().value!);
    return false;
  }
}

/** As the backoff of addresses is keyed. */
export function addressKey(signal: Pick<DatapathSignal, 'localAddress' | 'remoteAddress'>): string {
  return `${signal.localAddress}|${signal.remoteAddress}`;
}

/** Does the kernel ask for this flow alone? */
function isOfFlow(signal: DatapathSignal): boolean {
  return signal.kind === 'auth-miss' && signal.authType === 'spiffe-connection';
}

function flowOf(signal: DatapathSignal): FlowTuple {
  const { endpoint, localAddress, remoteAddress, protocol, localPort, remotePort } = signal;
  return { endpoint, localAddress, remoteAddress, protocol, localPort, remotePort };
}

function pairOf(signal: DatapathSignal, remote: SecurityIdentity): Pick<AuthKey, 'local' | 'remote'> {
  return { local: signal.localIdentity, remote };
}

/** The first that is ok, or else why the first of them is not. */
function firstOk<T>(attempts: readonly Promise<Result<T, ReasonCode>>[]): Promise<Result<T, ReasonCode>> {
  return new Promise((resolve, reject) => {
    for (const attempt of attempts) attempt.then((result) => (result.ok ? resolve(result) : undefined), reject);
    void Promise.allSettled(attempts).then(async () => resolve(await attempts[0]!), reject);
  });
}
