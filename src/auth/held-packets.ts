/**
 * A packet's story, where the agent learns of a miss: find out who the other side is (vouch), whether policy wants proof, prove it, and
 * let the held packets go, or drop them with a reason. A miss at the receiver holds nothing: it makes the next packet pass.
 */
import { FrameType, Miss } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { PeerChannel, PeerChannels } from '../channel/peer-channel.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthKey, AuthType, DatapathSignal, HoldQueue } from '../model/datapath.ts';
import type { IdentityTable, NodeInfo, NodeTable } from '../model/identity.ts';
import { LOCAL_NODE, type SecurityIdentity, type SpiffeId } from '../model/ids.ts';
import type { Backoff } from './backoff.ts';
import type { PairAuthenticator } from './pair-authenticator.ts';
import type { AuthSettings, PolicyDecisions } from './ports.ts';
import { nsOfMs } from './units.ts';
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
  policy(): PolicyDecisions;
  /** By pair of addresses: what failed before the other side's identity was known. */
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly log: Logger;
}

type Step = Result<void, ReasonCode>;

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
    const key = `${signal.kind}|${signal.direction}|${addressKey(signal)}`;
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
  onMiss(channel: PeerChannel, body: Buffer): void {
    const { localIdentity, remoteIdentity } = Miss.decode(body);
    const local = remoteIdentity as SecurityIdentity;
    const remote = localIdentity as SecurityIdentity;
    const key: AuthKey = { local, remote, remoteNode: channel.peer.id, authType: 'spiffe' };
    if (!this.#options.host.hosts(local) || !this.#options.policy().authTypesOf(local, remote).includes('spiffe'))
      return;
    if (this.#isTooSoon(`heed|${local}|${remote}|${channel.peer.id}`)) return;
    void this.#options.pairs.authenticate(key, this.#options.clock.bootNs());
  }

  /** Both kinds of miss at egress: the packet waits. */
  async #atSender(signal: DatapathSignal): Promise<Step> {
    const { host, vouches, pairs } = this.#options;
    const neighbour = host.at(signal.remoteAddress);
    if (neighbour !== undefined) {
      if (!neighbour.open) return this.#failed(signal, 'VOUCH_NOT_HOSTED');
      return this.#prove(signal, neighbour.identity, undefined);
    }
    const reached = await this.#reach(signal);
    if (!reached.ok) return this.#failed(signal, reached.error);
    const { node, channel } = reached.value;
    let vouch = vouches.known(node.id, signal.remoteAddress);
    if (vouch === undefined || !host.isKnownTo(node.id, signal.localAddress)) {
      const asked = await vouches.ask(channel, signal.remoteAddress, [signal.localAddress]);
      if (!asked.ok) return this.#failed(signal, asked.error);
      vouch = asked.value;
    }
    this.#options.backoff.succeeded(addressKey(signal));
    const step = await this.#prove(signal, vouch.identity, node);
    if (step.ok || step.error !== 'AUTH_NOT_VOUCHED') return step;
    // The peer has lost what it was told: tell it again, once.
    const again = await vouches.ask(channel, signal.remoteAddress, [signal.localAddress]);
    if (!again.ok) return this.#failed(signal, again.error);
    pairs.forgive({ ...pairOf(signal, again.value.identity), remoteNode: node.id, authType: 'spiffe' });
    return this.#prove(signal, again.value.identity, node);
  }

  async #prove(signal: DatapathSignal, remote: SecurityIdentity, node: NodeInfo | undefined): Promise<Step> {
    const authType = this.#demand(signal, remote);
    if (authType === 'none') return ok(undefined);
    const key: AuthKey = { ...pairOf(signal, remote), remoteNode: node?.id ?? LOCAL_NODE, authType };
    const outcome = await this.#options.pairs.authenticate(key, signal.timeNs);
    return outcome.ok ? ok(undefined) : outcome;
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
    if (this.#options.host.at(signal.remoteAddress) !== undefined) return ok(undefined);
    const reached = await this.#reach(signal);
    if (!reached.ok) return this.#failed(signal, reached.error);
    const { node, channel } = reached.value;
    if (signal.kind === 'vouch-miss') {
      const asked = await this.#options.vouches.ask(channel, signal.remoteAddress, [signal.localAddress]);
      return asked.ok ? ok(undefined) : this.#failed(signal, asked.error);
    }
    const { localIdentity, remoteIdentity } = signal;
    if (this.#isTooSoon(`say|${localIdentity}|${remoteIdentity}|${node.id}`)) return ok(undefined);
    channel.send(FrameType.FRAME_TYPE_MISS, Miss.encode({ localIdentity, remoteIdentity }).finish());
    return ok(undefined);
  }

  /** The node, by the kernel's entry or else by a hint, and the channel to it. */
  async #reach(signal: DatapathSignal): Promise<Result<{ node: NodeInfo; channel: PeerChannel }, ReasonCode>> {
    const { nodes, channels, selfSpiffeId } = this.#options;
    const node =
      signal.remoteNode === LOCAL_NODE ? nodes.byAddress(signal.remoteAddress) : nodes.byId(signal.remoteNode);
    if (node === undefined) return err('VOUCH_NO_NODE');
    if (node.spiffeId === selfSpiffeId) return err('VOUCH_NOT_HOSTED');
    const open = channels.get(node);
    if (open !== undefined) return ok({ node, channel: open });
    try {
      return ok({ node, channel: await channels.open(node) });
    } catch (thrown) {
      return err(reasonOf(thrown));
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
    if (step.ok) this.#options.hold.release(localAddress, remoteAddress);
    else {
      const reason = step.error === 'AUTH_ALWAYS_FAIL' ? 'AUTH_ALWAYS_FAIL' : 'HOLD_REFUSED';
      this.#options.hold.refuse(localAddress, remoteAddress, reason);
    }
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

function pairOf(signal: DatapathSignal, remote: SecurityIdentity): Pick<AuthKey, 'local' | 'remote'> {
  return { local: signal.localIdentity, remote };
}

/** PeerChannels.open rejects with an error that carries a reason code. */
function reasonOf(thrown: unknown): ReasonCode {
  const reason = typeof thrown === 'object' && thrown !== null && 'reason' in thrown ? thrown.reason : undefined;
  return typeof reason === 'string' && Object.hasOwn(reasonCodes, reason) ? (reason as ReasonCode) : 'PEER_UNREACHABLE';
}
