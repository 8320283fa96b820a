/** Proofs of one node, wired up: the methods, the entries they write, what takes those away again, and what is proven ahead of packets. */
import type { Clock } from '../base/clock.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel, PeerChannels } from '../channel/peer-channel.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthKey, AuthTable, AuthType, FlowTuple } from '../model/datapath.ts';
import type { NodeInfo, NodeTable } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import { AuthAudit } from './auth-audit.ts';
import type { AuthRecord, WhyGone } from './auth-entries.ts';
import { type AuthMethod, alwaysFail } from './auth-method.ts';
import { Backoff } from './backoff.ts';
import { EntryUpkeep } from './entry-upkeep.ts';
import type { ExchangeHost, Outcome, ProvenPair } from './exchange-host.ts';
import { FlowProofs, mirrored } from './flow-proofs.ts';
import { SpiffeOnNode } from './local-pair.ts';
import type { OwnProofs } from './own-proof.ts';
import { PairAuthenticator } from './pair-authenticator.ts';
import type { AuthSettings, PolicyDecisions } from './ports.ts';
import { PreAuthentication } from './pre-authentication.ts';
import { writeProven } from './proven-entries.ts';
import { RecentPairs } from './recent-pairs.ts';
import { SpiffeOnChannels } from './spiffe-channel.ts';
import { laterOf, nsOfMs } from './units.ts';
import type { ProofFacts } from './verify-proof.ts';

export interface ProofsOptions {
  readonly self: Pick<NodeInfo, 'name' | 'spiffeId'>;
  readonly table: AuthTable;
  readonly facts: ProofFacts;
  readonly owns: OwnProofs;
  readonly nodes: NodeTable;
  readonly channels: PeerChannels;
  hosts(identity: SecurityIdentity): boolean;
  /** Identities of open endpoints here. */
  hosted(): Iterable<SecurityIdentity>;
  /** Identities that the node vouches for now. */
  vouchedBy(node: NodeId): Iterable<SecurityIdentity>;
  settled(node: NodeId, identity: SecurityIdentity): Promise<unknown> | undefined;
  /** Who has the address on this node, open. */
  ownAt(address: IpAddress): { readonly endpoint: number; readonly identity: SecurityIdentity } | undefined;
  /** Who has the address by the node's vouch, in force now. */
  identityAt(node: NodeId, address: IpAddress): SecurityIdentity | undefined;
  policy(): PolicyDecisions;
  /** As AuthManagerOptions.tainted. */
  tainted(): ReadonlySet<string>;
  /** When a packet last passed between here and the node, CLOCK_BOOTTIME. Left out: nobody counts, everything is in use. */
  readonly lastUse: ((node: NodeId) => bigint | undefined) | undefined;
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
}

export class Proofs {
  readonly pairs: PairAuthenticator;
  readonly upkeep: EntryUpkeep;
  readonly ahead: PreAuthentication;
  readonly onChannels: SpiffeOnChannels;
  readonly recent = new RecentPairs();
  readonly flows: FlowProofs;
  readonly #options: ProofsOptions;
  readonly #onNode: SpiffeOnNode;

  constructor(options: ProofsOptions) {
    this.#options = options;
    const { table, facts, owns, hosts, nodes, channels, settings, random, clock, timers, self } = options;
    const audit = new AuthAudit({
      self: self.name,
      nodeName: (id) => nodes.byId(id)?.name,
      identities: facts.identities,
      audit: options.audit,
      clock,
    });
    this.onChannels = new SpiffeOnChannels({
      channelTo: (id) => {
        const node = nodes.byId(id);
        return node === undefined ? undefined : channels.get(node);
      },
      hostFor: (peer) => this.#exchangeHost(peer),
    });
    this.#onNode = new SpiffeOnNode({
      facts,
      owns,
      nodeSpiffeId: self.spiffeId,
      epoch: () => table.epoch,
      write: (pairs) => this.#write(pairs),
    });
    this.pairs = new PairAuthenticator({
      table,
      hosts,
      methodOf: (authType, node) => this.#methodOf(authType, node),
      isWanted: (record) => this.#isWanted(record),
      asked: (key) => this.recent.used(key, clock.bootNs()),
      lost: (record, why) => this.#lost(record, why),
      backoff: options.backoff,
      settings,
      random,
      audit,
      clock,
      timers,
    });
    this.flows = new FlowProofs({
      table,
      facts,
      hosts,
      policy: () => options.policy(),
      prove: (key, flow) => this.#proveFlow(key, flow),
      backoff: options.backoff,
      settings,
      audit,
      clock,
      timers,
    });
    this.upkeep = new EntryUpkeep({
      entries: this.pairs.entries,
      table,
      facts,
      hosts,
      policy: () => options.policy(),
      clock,
    });
    this.ahead = new PreAuthentication({
      settings: settings.preAuthentication,
      pairs: this.pairs,
      recent: this.recent,
      hosted: () => options.hosted(),
      vouchedBy: (node) => options.vouchedBy(node),
      reachable: () => channels.list().map(({ peer, role }) => ({ node: peer.id, isClient: role === 'client' })),
      requires: (a, b) => options.policy().authTypesOf(a, b).includes('spiffe'),
      canProve: (identity) => owns.of(identity).ok,
      isProven: (key) => this.onChannels.isProven(key),
      proveAll: (keys, node) => this.onChannels.proveAll(keys, node),
      backoff: new Backoff(settings, random),
      failed: (key: AuthKey, reason: ReasonCode) => audit.failed(key, reason, undefined),
      clock,
      timers,
    });
  }

  channelOpened(channel: PeerChannel): void {
    this.onChannels.opened(channel);
    this.ahead.changed(channel.peer.id);
  }

  channelClosed(channel: PeerChannel): void {
    this.onChannels.closed(channel);
  }

  /** Entries that rest on something revoked go before this returns; their packets drop, none is held. How many went. */
  revoked(): number {
    const { clock, settings } = this.#options;
    const untilNs = clock.bootNs() + nsOfMs(settings.backoffMinMs);
    const gone = this.upkeep.revoked(untilNs);
    this.pairs.banned(gone, untilNs);
    return gone.length + this.flows.revoked();
  }

  bundlesChanged(): void {
    this.onChannels.forgetProofs();
    this.upkeep.bundlesChanged();
    this.flows.recheck(undefined, (proof) => this.upkeep.chainRefusal(proof.chain, proof.spiffeId));
    this.ahead.allChanged();
  }

  /**
   * An own SVID came, was replaced or went. What rests on one that a tainted key signed is proven with its successor now: when the key is taken
   * back, no packet has to wait for that. The peer does the same with its own.
   */
  svidsChanged(): void {
    const { tainted, owns } = this.#options;
    const keys = tainted();
    if (keys.size > 0) {
      const outdated = this.pairs.entries.list().filter(({ own, local }) => {
        if (own === undefined || !own.subject.authorities?.some((id) => keys.has(id))) return false;
        const now = owns.of(local);
        return now.ok && now.value.digest !== own.digest;
      });
      this.pairs.renew(outdated);
    }
    this.ahead.allChanged();
  }

  policyChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.upkeep.policyChanged(of);
    this.flows.recheck(of);
    this.#concerns(of);
  }

  identitiesChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.upkeep.recheck(of);
    this.flows.recheck(of);
    this.#concerns(of);
  }

  /** The endpoint closed. */
  closed(identity: SecurityIdentity): void {
    this.upkeep.closed(identity);
    this.flows.recheck(new Set([identity]));
  }

  lostVouch(node: NodeId, identity: SecurityIdentity): void {
    this.upkeep.lostVouch(node, identity);
    this.flows.recheck(new Set([identity]));
  }

  flush(concerns: (key: AuthKey) => boolean): number {
    const { entries } = this.pairs;
    const why = { kind: 'auth.revoked', reason: 'REVOKED_BY_ADMIN' } as const;
    return entries.remove(entries.list().filter(concerns), why) + this.flows.flush(concerns);
  }

  nodeRemoved(node: NodeId): void {
    this.upkeep.nodeRemoved(node);
    this.flows.flush((key) => key.remoteNode === node);
    this.ahead.nodeRemoved(node);
    this.recent.forget(node);
  }

  /** When anything of the node was last used: a packet passed, or a proof was asked for. CLOCK_BOOTTIME; 0: not since the agent started. */
  lastUseOf(node: NodeId): bigint {
    return laterOf(this.#options.lastUse?.(node) ?? 0n, this.recent.lastUseOf(node));
  }

  #concerns(of: ReadonlySet<SecurityIdentity> | undefined) {
    if (of === undefined) return this.ahead.allChanged();
    this.ahead.allChanged({ locals: of });
    this.ahead.allChanged({ remotes: of });
  }

  #methodOf(authType: AuthType, node: NodeId): AuthMethod | undefined {
    if (authType === 'test-always-fail') return alwaysFail;
    if (authType !== 'spiffe') return undefined;
    return node === LOCAL_NODE ? this.#onNode : this.onChannels;
  }

  /** Renewed while policy requires it, and it is used or kept proven ahead of use. */
  #isWanted(record: AuthRecord): boolean {
    const { policy, lastUse } = this.#options;
    if (!policy().authTypesOf(record.local, record.remote).includes(record.authType)) return false;
    if (lastUse === undefined || record.remoteNode === LOCAL_NODE || this.ahead.covers(record)) return true;
    return laterOf(lastUse(record.remoteNode) ?? 0n, this.recent.lastUse(record)) > record.writtenAtNs;
  }

  /** What ended by itself, or was flushed, is proven again where that is done ahead of packets. */
  #lost({ remoteNode, local, remote }: AuthRecord, why: WhyGone): void {
    if (why.reason !== 'AUTH_EXPIRED' && why.reason !== 'REVOKED_BY_ADMIN') return;
    this.ahead.changed(remoteNode, { locals: new Set([local]), remotes: new Set([remote]) });
  }

  #write(pairs: readonly ProvenPair[]): AuthRecord[] {
    if (!pairs.some(({ flow }) => flow !== undefined)) return writeProven(this.pairs.entries, pairs, this.#options);
    // Flows come one by one, or as the two sides of one.
    return pairs.map((pair) => this.flows.write(pair, pair.flow!));
  }

  #erase(records: readonly AuthRecord[], reason: ReasonCode, flow: FlowTuple | undefined): void {
    if (flow === undefined) this.pairs.entries.remove(records, { kind: 'auth.expired', reason });
    else for (const record of records) this.flows.erase(record, flow);
  }

  #proveFlow(key: AuthKey, flow: FlowTuple): Promise<Outcome> {
    if (key.remoteNode !== LOCAL_NODE) return this.onChannels.proveFlow(key, flow);
    const neighbour = this.#options.ownAt(flow.remoteAddress);
    if (neighbour?.identity !== key.remote) return Promise.resolve(err('AUTH_NOT_VOUCHED'));
    return this.#onNode.proveFlow(key, flow, mirrored(flow, neighbour.endpoint));
  }

  #exchangeHost(peer: NodeInfo): ExchangeHost {
    const { facts, table, owns, hosts, settled, ownAt, identityAt, settings, clock, timers, policy } = this.#options;
    return {
      facts,
      epoch: () => table.epoch,
      own: (identity) => owns.of(identity),
      hosts,
      authTypesOf: (a, b) => policy().authTypesOf(a, b),
      settled: (remote) => settled(peer.id, remote),
      endpointAt: (address) => ownAt(address)?.endpoint,
      isFlowOf: ({ local, remote, flow }) =>
        flow !== undefined &&
        ownAt(flow.localAddress)?.identity === local &&
        identityAt(peer.id, flow.remoteAddress) === remote,
      write: (pairs) => this.#write(pairs),
      erase: (records, reason, flow) => this.#erase(records, reason, flow),
      answered: (pair, correlation, outcome) => this.pairs.answered(peer.id, pair, correlation, outcome),
      settings,
      clock,
      timers,
    };
  }
}
