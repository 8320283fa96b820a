/**
 * `spiffe-connection`: a proof for each flow, bound to its 5-tuple on both nodes, from authenticators that are made for it alone. Of what flows
 * rest on only pairs and certificates are remembered: when one of these goes, all flows of the pair are to be proven anew.
 */
import type { Clock } from '../base/clock.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { AuthKey, AuthTable, FlowTuple } from '../model/datapath.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { AuthAudit } from './auth-audit.ts';
import { type AuthRecord, authKeyText } from './auth-entries.ts';
import type { Backoff } from './backoff.ts';
import type { Outcome, ProvenPair } from './exchange-host.ts';
import type { OwnProof } from './own-proof.ts';
import type { AuthSettings, PolicyDecisions } from './ports.ts';
import { recordOf } from './proven-entries.ts';
import { msOfNs, nsOfMs } from './units.ts';
import { checkStanding, type Proof, type ProofFacts } from './verify-proof.ts';

export interface FlowProofsOptions {
  readonly table: AuthTable;
  readonly facts: ProofFacts;
  hosts(identity: SecurityIdentity): boolean;
  policy(): PolicyDecisions;
  prove(key: AuthKey, flow: FlowTuple): Promise<Outcome>;
  /** By pair: one that failed is left alone for a while, whatever its ports. */
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  readonly audit: AuthAudit;
  readonly clock: Clock;
  readonly timers: Timers;
}

interface Rest {
  readonly own: OwnProof;
  readonly remoteProof: Proof;
  untilNs: bigint;
}

interface Pairs {
  readonly key: AuthKey;
  /** By both certificates. Empty: of before a restart. */
  readonly rests: Map<string, Rest>;
}

export class FlowProofs {
  readonly #options: FlowProofsOptions;
  readonly #pending = new Map<string, Promise<Outcome>>();
  readonly #pairs = new Map<string, Pairs>();

  constructor(options: FlowProofsOptions) {
    this.#options = options;
    for (const { local, remote, remoteNode, authType } of options.table.listFlows()) {
      const key = { local, remote, remoteNode, authType };
      this.#pairs.set(authKeyText(key), { key, rests: new Map() });
    }
    // A flow that runs is judged anew then, and proven.
    if (this.#pairs.size > 0)
      options.timers.set(options.settings.leaseMs, () => this.#drop(({ rests }) => rests.size === 0));
  }

  /** Joins what is under way for this very flow. */
  authenticate(key: AuthKey, flow: FlowTuple, sinceNs: bigint): Promise<Outcome> {
    const { backoff, clock, settings, hosts, prove } = this.#options;
    const text = flowText(flow);
    const pending = this.#pending.get(text);
    if (pending !== undefined) return pending;
    const refusal = backoff.isWaiting(authKeyText(key), clock.bootNs())
      ? 'AUTH_BACKOFF'
      : this.#pending.size >= settings.queueSize
        ? 'AUTH_QUEUE_FULL'
        : hosts(key.local)
          ? undefined
          : 'AUTH_NOT_VOUCHED';
    if (refusal !== undefined) return Promise.resolve(this.#failed(key, flow, refusal));
    const attempt = prove(key, flow).then((outcome) => {
      this.#pending.delete(text);
      if (!outcome.ok) return this.#failed(key, flow, outcome.error);
      backoff.succeeded(authKeyText(key));
      this.#options.audit.succeeded(outcome.value, msOfNs(clock.bootNs() - sinceNs));
      return outcome;
    });
    this.#pending.set(text, attempt);
    return attempt;
  }

  /** When this returns, the flow passes on this node. */
  write(pair: ProvenPair, flow: FlowTuple): AuthRecord {
    const record = recordOf(pair, 'spiffe-connection', false, this.#options);
    const { local, remote, remoteNode, authType, expiresAtNs, epoch } = record;
    const key = { local, remote, remoteNode, authType };
    this.#options.table.putFlow({ ...key, expiresAtNs, epoch }, flow);
    const pairs = this.#pairs.get(authKeyText(key)) ?? { key, rests: new Map<string, Rest>() };
    this.#pairs.set(authKeyText(key), pairs);
    const now = this.#options.clock.bootNs();
    for (const [text, rest] of pairs.rests) if (rest.untilNs <= now) pairs.rests.delete(text);
    pairs.rests.set(`${pair.own.digest} ${pair.remoteProof.leaf.digest}`, {
      own: pair.own,
      remoteProof: pair.remoteProof,
      untilNs: expiresAtNs,
    });
    return record;
  }

  /** Of this flow alone, after it was written and the other side says no. */
  erase(key: AuthKey, flow: FlowTuple): void {
    this.#options.table.refuseFlow(
      key,
      flow,
      this.#options.clock.bootNs() + nsOfMs(this.#options.settings.backoffMinMs),
    );
  }

  /**
   * Something that proofs rest on has changed: the flows of every pair that would not be proven now are judged anew. `of`: whom the change
   * concerns; all. `chainRefusal`: a bundle changed too. How many pairs.
   */
  recheck(of?: ReadonlySet<SecurityIdentity>, chainRefusal?: (proof: Proof) => ReasonCode | undefined): number {
    return this.#drop(({ key, rests }) => {
      if (of !== undefined && !of.has(key.local) && !of.has(key.remote)) return false;
      return [...rests.values()].some(
        (rest) => (this.#refusal(key, rest) ?? chainRefusal?.(rest.remoteProof)) !== undefined,
      );
    });
  }

  /** Nobody knows what flows of before a restart rest on. */
  revoked(): number {
    return this.#drop(({ key, rests }) => {
      return rests.size === 0 || [...rests.values()].some((rest) => this.#refusal(key, rest) !== undefined);
    });
  }

  flush(concerns: (key: AuthKey) => boolean): number {
    return this.#drop(({ key }) => concerns(key));
  }

  #refusal(key: AuthKey, { own, remoteProof }: Rest): ReasonCode | undefined {
    const { facts, hosts, policy } = this.#options;
    if (!policy().authTypesOf(key.local, key.remote).includes('spiffe-connection')) return 'AUTH_NOT_REQUIRED';
    if (!hosts(key.local)) return 'AUTH_NOT_VOUCHED';
    if (facts.identities.byIdentity(key.local)?.spiffeId !== own.svid.spiffeId) return 'AUTH_WRONG_SPIFFE_ID';
    if (facts.revocations.isRevoked(own.subject)) return 'AUTH_REVOKED';
    const standing = checkStanding(facts, remoteProof);
    // Its flows end by themselves.
    return standing === 'AUTH_EXPIRED' ? undefined : standing;
  }

  #drop(isGoing: (pairs: Pairs) => boolean): number {
    const going = [...this.#pairs.values()].filter(isGoing);
    if (going.length === 0) return 0;
    this.#options.table.deleteFlows(going.map(({ key }) => key));
    for (const { key } of going) this.#pairs.delete(authKeyText(key));
    return going.length;
  }

  /** A flow that failed drops at once for a while; what the other side wrote, or a new flow, is another matter. */
  #failed(key: AuthKey, flow: FlowTuple, reason: ReasonCode): Outcome {
    const { backoff, clock, table, audit, settings } = this.#options;
    const text = authKeyText(key);
    const now = clock.bootNs();
    if (reason !== 'AUTH_BACKOFF' && reason !== 'AUTH_QUEUE_FULL') backoff.failed(text, reason, now, clock.nowMs());
    table.refuseFlow(key, flow, backoff.last(text)?.retryAtNs ?? now + nsOfMs(settings.backoffMinMs));
    if (reason !== 'AUTH_BACKOFF') audit.failed(key, reason, undefined);
    return err(reason);
  }
}

export function flowText({
  endpoint,
  localAddress,
  remoteAddress,
  protocol,
  localPort,
  remotePort,
}: FlowTuple): string {
  return `${endpoint} ${protocol} ${localAddress} ${localPort} ${remoteAddress} ${remotePort}`;
}

/** As the other side sees it; `endpoint` is the other side's. */
export function mirrored(flow: FlowTuple, endpoint: number): FlowTuple {
  return {
    endpoint,
    localAddress: flow.remoteAddress,
    remoteAddress: flow.localAddress,
    protocol: flow.protocol,
    localPort: flow.remotePort,
    remotePort: flow.localPort,
  };
}
