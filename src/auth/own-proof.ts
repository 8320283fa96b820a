/** What this node can prove about a workload of its own, and until when: nothing is shown, or written, that rests on a revoked SVID. */
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { RevocationSubject, RevocationTable, Svid, SvidSource } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { type Certificate, parseCertificate } from '../pki/certificate.ts';
import { revocationSubject } from './verify-proof.ts';

export interface OwnProof {
  readonly identity: SecurityIdentity;
  readonly svid: Svid;
  readonly digest: string;
  readonly subject: RevocationSubject;
}

export class OwnProofs {
  readonly #svids: SvidSource;
  readonly #revocations: RevocationTable;
  readonly #nowMs: () => number;
  readonly #leaves = new WeakMap<Buffer, Certificate>();
  /** The same object for the same SVID: every auth entry that rests on it keeps it. */
  readonly #proofs = new Map<SecurityIdentity, OwnProof>();

  constructor(svids: SvidSource, revocations: RevocationTable, nowMs: () => number) {
    this.#svids = svids;
    this.#revocations = revocations;
    this.#nowMs = nowMs;
  }

  of(identity: SecurityIdentity): Result<OwnProof, ReasonCode> {
    const svid = this.#svids.svidOf(identity);
    if (!svid.ok) {
      this.#proofs.delete(identity);
      return svid;
    }
    const leaf = this.#leafOf(svid.value);
    if (leaf === undefined) return err('AUTH_NO_SVID');
    const known = this.#proofs.get(identity);
    const proof: OwnProof =
      known?.svid === svid.value
        ? known
        : { identity, svid: svid.value, digest: leaf.digest, subject: revocationSubject(leaf, svid.value.spiffeId) };
    if (this.#revocations.isRevoked(proof.subject)) return err('AUTH_REVOKED');
    if (this.#nowMs() >= svid.value.notAfterMs) return err('CERT_EXPIRED');
    this.#proofs.set(identity, proof);
    return ok(proof);
  }

  #leafOf(svid: Svid): Certificate | undefined {
    const der = svid.chain[0];
    if (der === undefined) return undefined;
    const known = this.#leaves.get(der);
    if (known !== undefined) return known;
    const parsed = parseCertificate(der);
    if (!parsed.ok) return undefined;
    this.#leaves.set(der, parsed.value);
    return parsed.value;
  }
}
