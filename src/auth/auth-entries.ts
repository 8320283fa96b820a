/**
 * Auth entries with what they rest on, beside the kernel's table: so that a revocation, a lost vouch or a changed policy deletes exactly
 * the entries it concerns, at once. Entries found in the table at the start (an earlier life of the agent) rest on proofs that
 * nobody remembers: they live on until they are proven anew, or not in time, and any revocation takes those that are left.
 */
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuthEntry, AuthKey, AuthTable } from '../model/datapath.ts';
import type { RevocationSubject } from '../model/identity.ts';
import type { NodeId, SecurityIdentity } from '../model/ids.ts';
import type { OwnProof } from './own-proof.ts';
import { type Proof, revocationSubject } from './verify-proof.ts';

export interface AuthRecord extends AuthEntry {
  readonly own: OwnProof | undefined;
  readonly remoteProof: Proof | undefined;
  /** Did this node begin the exchange? It renews first. */
  readonly initiated: boolean;
  /** It took the place of an entry that still lived. */
  readonly renews: boolean;
  /** CLOCK_BOOTTIME. */
  readonly writtenAtNs: bigint;
  readonly correlation: string;
}

/** Nobody remembers what it rests on: an earlier life of the agent wrote it, and it has not been proven anew yet. */
export function isAdopted(record: AuthRecord): boolean {
  return record.remoteProof === undefined;
}

export type WhyGone = { readonly kind: 'auth.revoked' | 'auth.expired'; readonly reason: ReasonCode };

export interface AuthEntriesOptions {
  readonly table: AuthTable;
  written(record: AuthRecord): void;
  gone(record: AuthRecord, why: WhyGone): void;
}

export class AuthEntries {
  readonly #options: AuthEntriesOptions;
  readonly #ofNode = new Map<NodeId, Map<number | string, AuthRecord>>();
  #size = 0;
  #adopted = 0;
  /**
   * What rests on each certificate, by digest: a revocation costs what it concerns, not what there is. On most of many it is one
   * record, for which a set would take four times as much.
   */
  readonly #certificates = new Map<string, AuthRecord | Set<AuthRecord>>();

  constructor(options: AuthEntriesOptions) {
    this.#options = options;
  }

  adopt(nowNs: bigint): void {
    // Nobody remembers why they were refused either: their next packet is held again.
    this.#options.table.forgetRefusals();
    for (const entry of this.#options.table.list()) {
      // Field by field: there may be hundreds of thousands, and a spread object takes half as much again.
      const { local, remote, remoteNode, authType, expiresAtNs, epoch } = entry;
      this.#add({
        local,
        remote,
        remoteNode,
        authType,
        expiresAtNs,
        epoch,
        own: undefined,
        remoteProof: undefined,
        initiated: false,
        renews: false,
        writtenAtNs: nowNs,
        correlation: 'adopted',
      });
    }
  }

  get(key: AuthKey): AuthRecord | undefined {
    return this.#ofNode.get(key.remoteNode)?.get(pairKey(key));
  }

  get size(): number {
    return this.#size;
  }

  list(): AuthRecord[] {
    return [...this.#ofNode.values()].flatMap((records) => [...records.values()]);
  }

  /** Those of pairs with one of these; undefined: all. */
  concerning(identities: ReadonlySet<SecurityIdentity> | undefined): AuthRecord[] {
    if (identities === undefined) return this.list();
    const found: AuthRecord[] = [];
    for (const records of this.#ofNode.values()) {
      for (const record of records.values()) {
        if (identities.has(record.local) || identities.has(record.remote)) found.push(record);
      }
    }
    return found;
  }

  ofNode(node: NodeId): AuthRecord[] {
    return [...(this.#ofNode.get(node)?.values() ?? [])];
  }

  /** The kernel's table first: once this returns, packets pass. Many in one call of the kernel. */
  write(records: readonly AuthRecord[]): void {
    const [first] = records;
    if (first === undefined) return;
    if (records.length === 1) this.#options.table.put(entryOf(first));
    else this.#options.table.putAll(records.map(entryOf));
    for (const record of records) {
      this.#unlink(record);
      this.#add(record);
    }
  }

  /** Those of the node that nobody has proven since the agent started. */
  adoptedOf(node: NodeId): AuthRecord[] {
    return this.#adopted === 0 ? [] : this.ofNode(node).filter(isAdopted);
  }

  get adopted(): number {
    return this.#adopted;
  }

  /**
   * Takes away those of `concerned` that are still here, in one batch. When this returns, the kernel has none of them; with
   * `refusedUntilNs` it drops their packets until then instead of holding them. Returns how many.
   */
  remove(concerned: readonly AuthRecord[], why: WhyGone, refusedUntilNs?: bigint): number {
    const present = concerned.filter((record) => this.get(record) === record);
    if (present.length === 0) return 0;
    if (refusedUntilNs === undefined) this.#options.table.delete(present);
    else this.#options.table.refuse(present, refusedUntilNs);
    for (const record of present) this.#unlink(record);
    for (const record of present) this.#options.gone(record, why);
    return present.length;
  }

  /** Costs one question for each certificate, not for each entry. */
  restingOnRevoked(isRevoked: (subject: RevocationSubject) => boolean): ReadonlySet<AuthRecord> {
    const resting = new Set<AuthRecord>();
    for (const [digest, records] of this.#certificates) {
      const all = records instanceof Set ? records : [records];
      const [first] = all;
      if (isRevoked(subjectOf(first!, digest))) for (const record of all) resting.add(record);
    }
    return resting;
  }

  #add(record: AuthRecord): void {
    const records = this.#ofNode.get(record.remoteNode) ?? new Map<number | string, AuthRecord>();
    this.#ofNode.set(record.remoteNode, records.set(pairKey(record), record));
    this.#size += 1;
    if (isAdopted(record)) this.#adopted += 1;
    for (const digest of certificatesOf(record)) {
      const resting = this.#certificates.get(digest);
      if (resting === undefined) this.#certificates.set(digest, record);
      else if (resting instanceof Set) resting.add(record);
      else this.#certificates.set(digest, new Set([resting, record]));
    }
    this.#options.written(record);
  }

  /** Whatever record has this key. */
  #unlink(key: AuthKey): void {
    const records = this.#ofNode.get(key.remoteNode);
    const record = records?.get(pairKey(key));
    if (records === undefined || record === undefined) return;
    records.delete(pairKey(key));
    if (records.size === 0) this.#ofNode.delete(key.remoteNode);
    this.#size -= 1;
    if (isAdopted(record)) this.#adopted -= 1;
    for (const digest of certificatesOf(record)) {
      const resting = this.#certificates.get(digest);
      if (resting instanceof Set) resting.delete(record);
      if (!(resting instanceof Set) || resting.size === 0) this.#certificates.delete(digest);
    }
  }
}

/** Field by field: there may be hundreds of thousands, and a spread object takes half as much again. */
function entryOf({ local, remote, remoteNode, authType, expiresAtNs, epoch }: AuthRecord): AuthEntry {
  return { local, remote, remoteNode, authType, expiresAtNs, epoch };
}

export function authKeyText(key: AuthKey): string {
  return `${key.local}/${key.remote}/${key.remoteNode}/${key.authType}`;
}

/** Of the entries of one node. Workloads' identities have 16 bits, so the pair is a number that V8 keeps in place. */
function pairKey(key: AuthKey): number | string {
  const { local, remote, authType } = key;
  return local < 0x1_0000 && remote < 0x1_0000 && authType === 'spiffe' ? (local << 16) | remote : authKeyText(key);
}

/** Digests. */
function certificatesOf({ own, remoteProof }: AuthRecord): string[] {
  const digests = [];
  if (own !== undefined) digests.push(own.digest);
  // One and the same where an identity talks with itself on its node.
  if (remoteProof !== undefined && remoteProof.leaf.digest !== own?.digest) digests.push(remoteProof.leaf.digest);
  return digests;
}

/** What a revocation may name of the certificate, which the record rests on. */
function subjectOf({ own, remoteProof }: AuthRecord, digest: string): RevocationSubject {
  return own?.digest === digest ? own.subject : revocationSubject(remoteProof!.leaf, remoteProof!.spiffeId);
}
