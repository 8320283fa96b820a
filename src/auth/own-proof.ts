/** What this node can prove about a workload of its own, and until when: nothing is shown, or written, that rests on a revoked SVID. */
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { RevocationSubject, RevocationTable, Svid, SvidSource } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { type Certificate, parseCertificate } from '../pki/certificate.ts';
import { signersOf } from '../pki/verify.ts';
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
  /** By the leaf's bytes. The same object for the same SVID: every auth entry that rests on it keeps it. */
  readonly #read = new WeakMap<Buffer, Pick<OwnProof, 'digest' | 'subject'>>();
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
    const known = this.#proofs.get(identity);
    const proof = known?.svid === svid.value ? known : this.#proofOf(identity, svid.value);
    if (proof === undefined) return err('AUTH_NO_SVID');
    if (this.#revocations.isRevoked(proof.subject)) return err('AUTH_REVOKED');
    if (this.#nowMs() >= svid.value.notAfterMs) return err('CERT_EXPIRED');
    this.#proofs.set(identity, proof);
    return ok(proof);
  }

  #proofOf(identity: SecurityIdentity, svid: Svid): OwnProof | undefined {
    const der = svid.chain[0];
    if (der === undefined) return undefined;
    const known = this.#read.get(der) ?? readOwn(svid);
    if (known === undefined) return undefined;
    this.#read.set(der, known);
    return { identity, svid, ...known };
  }
}

/** A provided SVID may be anything: what of its chain cannot be read tells nothing of who signed it, and proves nothing to a peer. */
function readOwn({ chain, spiffeId }: Svid): Pick<OwnProof, 'digest' | 'subject'> | undefined {
  const certificates: Certificate[] = [];
  for (const der of chain) {
    const parsed = parseCertificate(der);
    if (parsed.ok) certificates.push(parsed.value);
    else if (certificates.length === 0) return undefined;
  }
  const { digest, serial, notBeforeMs, nodeBinding } = certificates[0]!;
  const leaf = { digest, serial, notBeforeMs, nodeBinding, authorities: signersOf(certificates) };
  return { digest, subject: revocationSubject(leaf, spiffeId) };
}
