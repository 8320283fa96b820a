/**
 * Takes auth entries away as soon as something they rest on has gone: each function is called with the change itself, before anything else
 * acts on it, and when it returns the kernel has none of the entries that the change concerns. Nothing here waits for a timer.
 */
import type { Clock } from '../base/clock.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuthTable } from '../model/datapath.ts';
import type { NodeId, SecurityIdentity, SpiffeId, TrustDomain } from '../model/ids.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { verifyX509Svid } from '../pki/verify.ts';
import { type AuthEntries, type AuthRecord, isAdopted } from './auth-entries.ts';
import type { PolicyDecisions } from './ports.ts';
import { checkStanding, type Proof, type ProofFacts } from './verify-proof.ts';

export interface EntryUpkeepOptions {
  readonly entries: AuthEntries;
  readonly table: AuthTable;
  readonly facts: ProofFacts;
  hosts(identity: SecurityIdentity): boolean;
  policy(): PolicyDecisions;
  readonly clock: Clock;
}

export class EntryUpkeep {
  readonly #options: EntryUpkeepOptions;
  /** Authorities of each trust domain that identities are of, as they were at the last change. */
  readonly #authorities = new Map<TrustDomain, ReadonlySet<string>>();

  constructor(options: EntryUpkeepOptions) {
    this.#options = options;
    this.#learnDomains();
  }

  /**
   * Exactly the entries that rest on something revoked, and those of which nobody knows what they rest on. Their packets drop, none
   * is held, until `untilNs`. Returns them.
   */
  revoked(untilNs: bigint): AuthRecord[] {
    const { entries, facts } = this.#options;
    const concerned = new Set(entries.restingOnRevoked((subject) => facts.revocations.isRevoked(subject)));
    if (entries.adopted > 0) for (const record of entries.list()) if (isAdopted(record)) concerned.add(record);
    const going = [...concerned];
    entries.remove(going, { kind: 'auth.revoked', reason: 'AUTH_REVOKED' }, untilNs);
    return going;
  }

  /**
   * Every proof that entries rest on is verified anew. An authority that went takes everything with it at once, by the epoch; what still
   * verifies comes back with the new one.
   */
  bundlesChanged(): void {
    const { entries, table } = this.#options;
    const epoch = this.#hasLostAuthority() ? table.raiseEpoch() : undefined;
    const verdicts = new Map<readonly Buffer[], ReasonCode | undefined>();
    const verdictOf = (chain: readonly Buffer[], spiffeId: SpiffeId) => {
      if (!verdicts.has(chain)) verdicts.set(chain, this.chainRefusal(chain, spiffeId));
      return verdicts.get(chain);
    };
    const good: AuthRecord[] = [];
    const going = new Map<ReasonCode, AuthRecord[]>();
    for (const record of entries.list()) {
      const { own, remoteProof } = record;
      let reason: ReasonCode | undefined;
      if (own === undefined || remoteProof === undefined)
        reason = epoch === undefined ? undefined : 'AUTH_NOT_CONFIRMED';
      else {
        reason = verdictOf(own.svid.chain, own.svid.spiffeId) ?? verdictOf(remoteProof.chain, remoteProof.spiffeId);
      }
      if (reason === undefined) good.push(record);
      else addTo(going, reason, record);
    }
    for (const [reason, records] of going) entries.remove(records, { kind: 'auth.revoked', reason });
    if (epoch !== undefined) entries.write(stamped(good, epoch));
  }

  /** Identity table, vouches or endpoints changed: what would not be proven today goes. `of`: whom the change concerns; all. */
  recheck(of?: ReadonlySet<SecurityIdentity>): void {
    const { entries, facts, hosts } = this.#options;
    this.#learnDomains();
    const going = new Map<ReasonCode, AuthRecord[]>();
    for (const record of entries.concerning(of)) {
      // Endpoints come back one after the other when an agent starts: what is not proven anew by then goes at its deadline.
      if (isAdopted(record)) continue;
      const { own, remoteProof } = record;
      let reason = checkStanding(facts, remoteProof!);
      if (!hosts(record.local)) reason = 'AUTH_NOT_VOUCHED';
      else if (facts.identities.byIdentity(record.local)?.spiffeId !== own!.svid.spiffeId)
        reason = 'AUTH_WRONG_SPIFFE_ID';
      if (reason !== undefined) addTo(going, reason, record);
    }
    for (const [reason, records] of going) entries.remove(records, { kind: 'auth.expired', reason });
  }

  /** The endpoint closed, and no other one here has the identity. */
  closed(identity: SecurityIdentity): void {
    if (this.#options.hosts(identity)) return;
    const { entries } = this.#options;
    const concerned = entries
      .concerning(new Set([identity]))
      .filter((record) => record.local === identity || record.remoteNode === 0);
    entries.remove(concerned, { kind: 'auth.expired', reason: 'AUTH_NOT_VOUCHED' });
  }

  /** `of`: whom it concerns; all. */
  policyChanged(of?: ReadonlySet<SecurityIdentity>): void {
    const policy = this.#options.policy();
    const unneeded = this.#options.entries
      .concerning(of)
      .filter((r) => !policy.authTypesOf(r.local, r.remote).includes(r.authType));
    this.#options.entries.remove(unneeded, { kind: 'auth.expired', reason: 'AUTH_NOT_REQUIRED' });
  }

  lostVouch(node: NodeId, identity: SecurityIdentity): void {
    const { entries } = this.#options;
    const concerned = entries.ofNode(node).filter((record) => record.remote === identity);
    entries.remove(concerned, { kind: 'auth.expired', reason: 'AUTH_NOT_VOUCHED' });
  }

  nodeRemoved(node: NodeId): void {
    const { entries } = this.#options;
    entries.remove(entries.ofNode(node), { kind: 'auth.expired', reason: 'VOUCH_NO_NODE' });
  }

  /** Does the chain verify with the bundles of now? */
  chainRefusal(chain: readonly Buffer[], spiffeId: SpiffeId): ReasonCode | undefined {
    const bundle = this.#options.facts.bundles.bundleOf(trustDomainOf(spiffeId));
    if (bundle === undefined) return 'CERT_UNTRUSTED';
    const verdict = verifyX509Svid(chain, bundle, this.#options.clock.nowMs());
    return verdict.ok ? undefined : verdict.error;
  }

  /** Reads the bundles as they are now: is an authority of before not among them? */
  #hasLostAuthority(): boolean {
    let isLost = false;
    for (const [domain, before] of this.#authorities) {
      const now = this.#read(domain);
      for (const authority of before) if (!now.has(authority)) isLost = true;
      this.#authorities.set(domain, now);
    }
    this.#learnDomains();
    return isLost;
  }

  #learnDomains(): void {
    for (const { spiffeId } of this.#options.facts.identities.rows()) {
      const domain = trustDomainOf(spiffeId);
      if (!this.#authorities.has(domain)) this.#authorities.set(domain, this.#read(domain));
    }
  }

  #read(domain: TrustDomain): Set<string> {
    const bundle = this.#options.facts.bundles.bundleOf(domain);
    return new Set(bundle?.authorities.map((der) => der.toString('latin1')));
  }
}

/** One copy of each proof, however many entries rest on it. */
function stamped(records: readonly AuthRecord[], epoch: number): AuthRecord[] {
  const proofs = new Map<Proof, Proof>();
  return records.map((record) => {
    const proof = record.remoteProof!;
    const renewed = proofs.get(proof) ?? { ...proof, epoch };
    proofs.set(proof, renewed);
    return { ...record, epoch, remoteProof: renewed };
  });
}

function addTo(groups: Map<ReasonCode, AuthRecord[]>, reason: ReasonCode, record: AuthRecord): void {
  const group = groups.get(reason);
  if (group === undefined) groups.set(reason, [record]);
  else group.push(record);
}
