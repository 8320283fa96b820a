/**
 * Pairs of identities and their auth entries: one authentication for each key at a time, across nodes by exchange.ts or on this node by
 * local-pair.ts; entries written with the least of all ends; renewed before that with jitter; taken back when what they rest on goes.
 */
import { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { AuditParty, AuditSink } from '../model/audit-event.ts';
import type { AuthKey, AuthTable } from '../model/datapath.ts';
import type { NodeInfo } from '../model/identity.ts';
import { LOCAL_NODE, type NodeId, type SecurityIdentity, type SpiffeId } from '../model/ids.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { verifyX509Svid } from '../pki/verify.ts';
import { AuthEntries, type AuthRecord, authKeyText, type WhyGone } from './auth-entries.ts';
import type { Backoff } from './backoff.ts';
import { Deadlines } from './deadlines.ts';
import { type ExchangeHost, Exchanges, type Pair, type ProvenPair } from './exchange.ts';
import { type LocalProof, proveLocally } from './local-pair.ts';
import type { OwnProofs } from './own-proof.ts';
import type { AuthSettings, PolicyDecisions } from './ports.ts';
import { msOfNs, nsOfMs } from './units.ts';
import { checkStanding, type ProofFacts } from './verify-proof.ts';

export interface PairAuthenticatorOptions {
  readonly self: { readonly name: string; readonly spiffeId: SpiffeId };
  readonly table: AuthTable;
  readonly facts: ProofFacts;
  readonly owns: OwnProofs;
  hosts(identity: SecurityIdentity): boolean;
  policy(): PolicyDecisions;
  settled(node: NodeId, identity: SecurityIdentity): Promise<unknown> | undefined;
  channelTo(node: NodeId): PeerChannel | undefined;
  nodeName(node: NodeId): string | undefined;
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
}

export interface Success {
  /** Unix ms. */
  readonly atMs: number;
  readonly handshakeMs: number;
  readonly correlation: string;
}

type Outcome = Result<AuthRecord, ReasonCode>;

/** Successes for `explain`, refusals to take back: beyond this the oldest is forgotten, and a refusal ends by itself. */
const MAX_REMEMBERED = 16_384;

export class PairAuthenticator {
  readonly entries: AuthEntries;
  readonly #options: PairAuthenticatorOptions;
  readonly #exchanges = new Map<PeerChannel, Exchanges>();
  readonly #pending = new Map<string, Promise<Outcome>>();
  /** Renewal, then end. */
  readonly #deadlines: Deadlines<AuthRecord>;
  readonly #successes = new Map<string, Success>();
  /** Keys that the kernel drops until their backoff ends. */
  readonly #refused = new Map<string, AuthKey>();

  constructor(options: PairAuthenticatorOptions) {
    this.#options = options;
    this.#deadlines = new Deadlines({
      timers: options.timers,
      nowMs: () => msOfNs(options.clock.bootNs()),
      isWanted: (record) => this.entries.get(record) === record,
      due: (records) => this.#due(records),
    });
    this.entries = new AuthEntries({
      table: options.table,
      written: (record) => this.#arm(record),
      gone: (record, why) => this.#gone(record, why),
    });
    this.entries.adopt(options.clock.bootNs());
  }

  /** For `explain`. */
  successesOf(concerns: (local: number, remote: number) => boolean): Success[] {
    return [...this.#successes].flatMap(([key, success]) => {
      const [local, remote] = key.split('/').map(Number) as [number, number];
      return concerns(local, remote) ? [success] : [];
    });
  }

  /**
   * Proves a pair, or joins the authentication of this key that is under way. `sinceNs`: when its packet met the miss.
   * On a failure the key is left alone for a while (AUTH_BACKOFF).
   */
  authenticate(key: AuthKey, sinceNs: bigint): Promise<Outcome> {
    const text = authKeyText(key);
    const pending = this.#pending.get(text);
    if (pending !== undefined) return pending;
    const { backoff, clock, settings } = this.#options;
    if (backoff.isWaiting(text, clock.bootNs())) return Promise.resolve(err('AUTH_BACKOFF'));
    if (this.#pending.size >= settings.queueSize) {
      this.#auditFailure(key, 'AUTH_QUEUE_FULL', undefined);
      return Promise.resolve(err('AUTH_QUEUE_FULL'));
    }
    const attempt = this.#attempt(key).then((outcome) => {
      this.#pending.delete(text);
      if (outcome.ok) this.#succeeded(key, outcome.value, sinceNs);
      else this.#failed(key, outcome.error);
      return outcome;
    });
    this.#pending.set(text, attempt);
    return attempt;
  }

  /** What failures rested on may be gone: the next try of the key, or of all, need not wait, and its packets are held again. */
  forgive(key?: AuthKey): void {
    const keys = key === undefined ? [...this.#refused.values()] : [key];
    const refused = keys.filter((one) => this.#refused.delete(authKeyText(one)) && this.entries.get(one) === undefined);
    if (refused.length > 0) this.#options.table.delete(refused);
    if (key === undefined) this.#options.backoff.relent();
    else this.#options.backoff.relent((text) => text === authKeyText(key));
  }

  channelOpened(channel: PeerChannel): void {
    this.#exchanges.set(channel, new Exchanges(channel, this.#exchangeHost(channel.peer)));
  }

  channelClosed(channel: PeerChannel): void {
    const exchanges = this.#exchanges.get(channel);
    this.#exchanges.delete(channel);
    exchanges?.closed();
  }

  /** @throws on a malformed body. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): void {
    const exchanges = this.#exchanges.get(channel);
    if (exchanges === undefined) return;
    switch (type) {
      case FrameType.FRAME_TYPE_PROVE_REQUEST:
        return void exchanges.onRequest(body);
      case FrameType.FRAME_TYPE_PROVE_CHALLENGE:
        return void exchanges.onChallenge(body);
      case FrameType.FRAME_TYPE_PROVE_PROOF:
        return void exchanges.onProof(body);
      case FrameType.FRAME_TYPE_PROVE_RESULT:
        return void exchanges.onResult(body);
    }
  }

  /**
   * Exactly the entries that rest on something revoked, in one batch, before this returns; their packets drop, none is held.
   * Returns how many.
   */
  revoked(): number {
    const { revocations } = this.#options.facts;
    const concerned = new Set(this.entries.restingOnRevoked((subject) => revocations.isRevoked(subject)));
    for (const record of this.entries.list()) if (record.correlation === 'adopted') concerned.add(record);
    const { backoff, clock, settings } = this.#options;
    const untilNs = clock.bootNs() + nsOfMs(settings.backoffMinMs);
    const removed = this.entries.remove([...concerned], { kind: 'auth.revoked', reason: 'AUTH_REVOKED' }, untilNs);
    for (const { local, remote, remoteNode, authType } of concerned) {
      const key = { local, remote, remoteNode, authType };
      this.#remember(this.#refused, authKeyText(key), key);
      backoff.failed(authKeyText(key), 'AUTH_REVOKED', clock.bootNs(), clock.nowMs());
    }
    return removed;
  }

  /** Every proof is verified anew: cached ones when next used, those that entries rest on now. */
  bundlesChanged(): void {
    for (const exchanges of this.#exchanges.values()) exchanges.forgetProofs();
    const verdicts = new Map<readonly Buffer[], ReasonCode | undefined>();
    for (const record of this.entries.list()) {
      for (const chain of [record.own?.svid.chain, record.remoteProof?.chain]) {
        const spiffeId = chain === record.own?.svid.chain ? record.own?.svid.spiffeId : record.remoteProof?.spiffeId;
        if (chain === undefined || spiffeId === undefined) continue;
        if (!verdicts.has(chain)) verdicts.set(chain, this.#chainRefusal(chain, spiffeId));
        const reason = verdicts.get(chain);
        if (reason !== undefined) this.entries.remove([record], { kind: 'auth.revoked', reason });
      }
    }
  }

  /** Identity table, vouches or endpoints changed: what would not be proven today goes. `of`: whom the change concerns; all. */
  recheck(of?: ReadonlySet<SecurityIdentity>): void {
    const { facts } = this.#options;
    const going = new Map<ReasonCode, AuthRecord[]>();
    for (const record of this.entries.concerning(of)) {
      let reason = record.remoteProof === undefined ? undefined : checkStanding(facts, record.remoteProof);
      if (!this.#options.hosts(record.local)) reason = 'AUTH_NOT_VOUCHED';
      else if (record.own !== undefined) {
        const row = facts.identities.byIdentity(record.local);
        if (row?.spiffeId !== record.own.svid.spiffeId) reason = 'AUTH_WRONG_SPIFFE_ID';
      }
      if (reason === undefined) continue;
      const same = going.get(reason);
      if (same === undefined) going.set(reason, [record]);
      else same.push(record);
    }
    for (const [reason, records] of going) this.entries.remove(records, { kind: 'auth.expired', reason });
  }

  /** `of`: whom it concerns; all. */
  policyChanged(of?: ReadonlySet<SecurityIdentity>): void {
    const policy = this.#options.policy();
    const unneeded = this.entries
      .concerning(of)
      .filter((r) => !policy.authTypesOf(r.local, r.remote).includes(r.authType));
    this.entries.remove(unneeded, { kind: 'auth.expired', reason: 'AUTH_NOT_REQUIRED' });
  }

  lostVouch(node: NodeId, identity: SecurityIdentity): void {
    const concerned = this.entries.ofNode(node).filter((record) => record.remote === identity);
    this.entries.remove(concerned, { kind: 'auth.expired', reason: 'AUTH_NOT_VOUCHED' });
  }

  nodeRemoved(node: NodeId): void {
    this.entries.remove(this.entries.ofNode(node), { kind: 'auth.expired', reason: 'VOUCH_NO_NODE' });
  }

  async #attempt(key: AuthKey): Promise<Outcome> {
    if (key.authType !== 'spiffe') return err('AUTH_ALWAYS_FAIL');
    if (!this.#options.hosts(key.local)) return err('AUTH_NOT_VOUCHED');
    if (key.remoteNode === LOCAL_NODE) return this.#attemptLocally(key);
    const channel = this.#options.channelTo(key.remoteNode);
    const exchanges = channel === undefined ? undefined : this.#exchanges.get(channel);
    if (exchanges === undefined) return err('PEER_CHANNEL_CLOSED');
    return exchanges.prove({ local: key.local, remote: key.remote });
  }

  /** Both directions, from both sides' proof, as across nodes. */
  #attemptLocally(key: AuthKey): Outcome {
    const { facts, owns, self, table } = this.#options;
    const epoch = table.epoch;
    const local = proveLocally(facts, owns, key.local, self.spiffeId, epoch);
    if (!local.ok) return local;
    const remote = proveLocally(facts, owns, key.remote, self.spiffeId, epoch);
    if (!remote.ok) return remote;
    const correlation = `local/${key.local}-${key.remote}-${this.#options.clock.bootNs()}`;
    this.#writeLocal(remote.value, local.value, false, correlation);
    return ok(this.#writeLocal(local.value, remote.value, true, correlation));
  }

  #writeLocal(own: LocalProof, other: LocalProof, initiated: boolean, correlation: string): AuthRecord {
    const pair = { local: own.own.identity, remote: other.own.identity };
    const remoteProof = other.proof;
    return this.#write({ ...pair, own: own.own, remoteProof, initiated, correlation, peerUntilMs: undefined });
  }

  #exchangeHost(peer: NodeInfo): ExchangeHost {
    const options = this.#options;
    return {
      facts: options.facts,
      epoch: () => options.table.epoch,
      own: (identity) => options.owns.of(identity),
      hosts: (identity) => options.hosts(identity),
      authTypesOf: (a, b) => options.policy().authTypesOf(a, b),
      settled: (remote) => options.settled(peer.id, remote),
      write: (pair) => this.#write(pair),
      erase: (record, reason) => void this.entries.remove([record], { kind: 'auth.expired', reason }),
      answered: (pair, correlation, outcome) => this.#answered(peer.id, pair, correlation, outcome),
      settings: options.settings,
      clock: options.clock,
      timers: options.timers,
    };
  }

  /** Ends at the least of both SVIDs' notAfter, the greatest age, and what the peer says of its own entry. */
  #write(pair: ProvenPair): AuthRecord {
    const { clock, settings } = this.#options;
    const { own, remoteProof, initiated, correlation, local, remote } = pair;
    const nowMs = clock.nowMs();
    const nowNs = clock.bootNs();
    const untilMs = Math.min(
      remoteProof.validUntilMs,
      own.svid.notAfterMs,
      nowMs + settings.maxAuthAgeMs,
      pair.peerUntilMs ?? Number.POSITIVE_INFINITY,
    );
    const key: AuthKey = { local, remote, remoteNode: remoteProof.node, authType: 'spiffe' };
    const record: AuthRecord = {
      local,
      remote,
      remoteNode: remoteProof.node,
      authType: 'spiffe',
      expiresAtNs: nowNs + nsOfMs(Math.max(0, untilMs - nowMs)),
      epoch: remoteProof.epoch,
      own,
      remoteProof,
      initiated,
      renews: this.entries.get(key) !== undefined,
      writtenAtNs: nowNs,
      correlation,
    };
    this.#refused.delete(authKeyText(key));
    this.entries.write(record);
    return record;
  }

  #chainRefusal(chain: readonly Buffer[], spiffeId: SpiffeId): ReasonCode | undefined {
    const bundle = this.#options.facts.bundles.bundleOf(trustDomainOf(spiffeId));
    if (bundle === undefined) return 'CERT_UNTRUSTED';
    const verdict = verifyX509Svid(chain, bundle, this.#options.clock.nowMs());
    return verdict.ok ? undefined : verdict.error;
  }

  /** Who began renews at three quarters of its life; the other a little later, if that did not happen. */
  #arm(record: AuthRecord): void {
    const { clock, random } = this.#options;
    const endMs = endMsOf(record);
    if (record.own === undefined) {
      this.#deadlines.add(record, endMs);
      return;
    }
    const part = (record.initiated ? 0.75 : 0.85) + 0.05 * random();
    const nowMs = msOfNs(clock.bootNs());
    this.#deadlines.add(record, nowMs + (endMs - nowMs) * part);
  }

  #due(records: readonly AuthRecord[]): void {
    const nowNs = this.#options.clock.bootNs();
    const ended = records.filter((record) => nowNs >= record.expiresAtNs);
    this.entries.remove(ended, { kind: 'auth.expired', reason: 'AUTH_EXPIRED' });
    for (const record of records) {
      if (nowNs >= record.expiresAtNs) continue;
      this.#deadlines.add(record, endMsOf(record));
      if (record.own !== undefined) this.#renew(record);
    }
  }

  #renew(record: AuthRecord): void {
    const { local, remote } = record;
    if (!this.#options.policy().authTypesOf(local, remote).includes(record.authType)) return;
    void this.authenticate(record, this.#options.clock.bootNs());
  }

  #gone(record: AuthRecord, why: WhyGone): void {
    const { local, remote, correlation } = record;
    this.#options.audit.emit({ ...why, correlation, ...this.#parties(local, remote, record.remoteNode) });
  }

  #succeeded(key: AuthKey, record: AuthRecord, sinceNs: bigint): void {
    const { backoff, clock } = this.#options;
    const text = authKeyText(key);
    const handshakeMs = msOfNs(clock.bootNs() - sinceNs);
    backoff.succeeded(text);
    this.#remember(this.#successes, text, { atMs: clock.nowMs(), handshakeMs, correlation: record.correlation });
    this.#auditSuccess(record, handshakeMs);
  }

  /** While the key is left alone, its packets drop at once: a flood of them must not fill the hold queue. */
  #failed(key: AuthKey, reason: ReasonCode): void {
    const { backoff, clock, table } = this.#options;
    const text = authKeyText(key);
    backoff.failed(text, reason, clock.bootNs(), clock.nowMs());
    // A renewal that failed takes nothing away: the entry lives to its end.
    if (this.entries.get(key) === undefined) {
      const { local, remote, remoteNode, authType } = key;
      this.#remember(this.#refused, text, { local, remote, remoteNode, authType });
      table.refuse([key], backoff.last(text)!.retryAtNs);
    }
    this.#auditFailure(key, reason, undefined);
  }

  /** The peer began. */
  #answered(node: NodeId, pair: Pair, correlation: string, outcome: Outcome): void {
    const { clock, backoff } = this.#options;
    const key: AuthKey = { ...pair, remoteNode: node, authType: 'spiffe' };
    const text = authKeyText(key);
    if (!outcome.ok) {
      backoff.note(text, outcome.error, clock.nowMs());
      if (!this.#pending.has(text)) this.#auditFailure(key, outcome.error, correlation);
      return;
    }
    backoff.succeeded(text);
    const handshakeMs = msOfNs(clock.bootNs() - outcome.value.writtenAtNs);
    this.#remember(this.#successes, text, { atMs: clock.nowMs(), handshakeMs, correlation });
    if (!this.#pending.has(text)) this.#auditSuccess(outcome.value, undefined);
  }

  #remember<T>(memory: Map<string, T>, text: string, what: T): void {
    memory.delete(text);
    memory.set(text, what);
    if (memory.size > MAX_REMEMBERED) memory.delete(memory.keys().next().value!);
  }

  #auditSuccess(record: AuthRecord, handshakeMs: number | undefined): void {
    const { local, remote, remoteNode, correlation, initiated } = record;
    const validMs = Math.floor(msOfNs(record.expiresAtNs - this.#options.clock.bootNs()));
    this.#options.audit.emit({
      kind: record.renews ? 'auth.renewed' : 'auth.succeeded',
      correlation,
      ...(initiated ? this.#parties(local, remote, remoteNode) : swap(this.#parties(local, remote, remoteNode))),
      detail: {
        role: initiated ? 'initiator' : 'responder',
        valid_ms: validMs,
        ...(handshakeMs === undefined ? {} : { handshake_ms: Math.round(handshakeMs * 1000) / 1000 }),
      },
    });
  }

  #auditFailure(key: AuthKey, reason: ReasonCode, correlation: string | undefined): void {
    const parties = this.#parties(key.local, key.remote, key.remoteNode);
    this.#options.audit.emit({
      kind: 'auth.failed',
      reason,
      ...(correlation === undefined ? parties : { ...swap(parties), correlation }),
      detail: { role: correlation === undefined ? 'initiator' : 'responder' },
    });
  }

  #parties(local: SecurityIdentity, remote: SecurityIdentity, node: NodeId) {
    const { self } = this.#options;
    const remoteName = node === LOCAL_NODE ? self.name : this.#options.nodeName(node);
    return { source: this.#party(local, self.name), destination: this.#party(remote, remoteName) };
  }

  #party(identity: SecurityIdentity, node: string | undefined): AuditParty {
    const row = this.#options.facts.identities.byIdentity(identity);
    return {
      identity,
      ...(row === undefined ? {} : { spiffeId: row.spiffeId }),
      ...(node === undefined ? {} : { node }),
    };
  }
}

/** The first whole ms at which it is over, on CLOCK_BOOTTIME. */
function endMsOf(record: AuthRecord): number {
  return Math.ceil(msOfNs(record.expiresAtNs));
}

function swap(parties: { source: AuditParty; destination: AuditParty }) {
  return { source: parties.destination, destination: parties.source };
}
