/** Certificates that were proven once, by digest: parsing, key import and signature checks are not done again. Nothing here depends on time. */
import type { Certificate } from './certificate.ts';

/** Least recently used goes first. Holds only what verified, so that garbage cannot push out what is in use. */
export class CertificateCache {
  readonly #capacity: number;
  readonly #byDigest = new Map<string, Certificate>();
  readonly #links = new WeakMap<Certificate, WeakSet<Certificate>>();

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get size(): number {
    return this.#byDigest.size;
  }

  get(digest: string): Certificate | undefined {
    const found = this.#byDigest.get(digest);
    if (found !== undefined) {
      this.#byDigest.delete(digest);
      this.#byDigest.set(digest, found);
    }
    return found;
  }

  add(certificate: Certificate): void {
    this.#byDigest.delete(certificate.digest);
    this.#byDigest.set(certificate.digest, certificate);
    if (this.#byDigest.size <= this.#capacity) return;
    const [oldest] = this.#byDigest.keys();
    this.#byDigest.delete(oldest!);
  }

  /** That `issuer`'s key signed `subject`: true for ever, as both are immutable. Trust in the issuer is not part of it. */
  addLink(subject: Certificate, issuer: Certificate): void {
    const issuers = this.#links.get(subject);
    if (issuers === undefined) this.#links.set(subject, new WeakSet([issuer]));
    else issuers.add(issuer);
  }

  hasLink(subject: Certificate, issuer: Certificate): boolean {
    return this.#links.get(subject)?.has(issuer) ?? false;
  }
}
