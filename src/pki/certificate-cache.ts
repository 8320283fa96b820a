/** Certificates by digest: parsing, and what a certificate remembers (its key, who signed it), is not done again. Nothing here depends on time. */
import type { Certificate } from './certificate.ts';

/** Bounded; the least recently used goes first. */
export class CertificateCache {
  readonly #capacity: number;
  readonly #byDigest = new Map<string, Certificate>();

  constructor(capacity: number) {
    this.#capacity = capacity;
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
}
