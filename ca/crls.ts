/** Keeps a CRL for each X.509 signing key: a new one when something was revoked, and long before the last one ends. On disk before it is served. */
import { hash } from 'node:crypto';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError } from '../src/base/errors.ts';
import { parseCertificate } from '../src/pki/certificate.ts';
import { type CrlEntry, signCrl } from './crl.ts';
import type { SigningKey } from './keys/key-manager.ts';
import { BACKDATE_SECONDS } from './profile.ts';
import type { RevocationRegistry } from './revocation.ts';
import { isPublished, type Slot, type Slots } from './slots.ts';

/** From thisUpdate to nextUpdate: for how long verifiers do without the server. */
const CRL_TTL_MS = 24 * 3_600_000;

export interface CrlsOptions {
  readonly slots: Slots;
  readonly revocations: RevocationRegistry;
  readonly clock: Clock;
  /** undefined: it is gone, and with it the power to sign a CRL. */
  readonly keyOf: (slot: Slot) => SigningKey | undefined;
}

export class Crls {
  readonly #options: CrlsOptions;
  /** By key id: of the last CRL, the digest of its entries, and since when they may have ended. */
  readonly #built = new Map<string, { readonly digest: string; readonly sinceMs: number }>();

  constructor(options: CrlsOptions) {
    this.#options = options;
  }

  /** DER, in the order of the keys. */
  current(): Buffer[] {
    return this.#options.slots.list().flatMap(({ crl }) => (crl === undefined ? [] : [crl.der]));
  }

  /**
   * Signs what is to be signed.
   * @returns whether a CRL is another one now, and the ms after which revocations are to be looked at again (see settle).
   */
  refresh(): { readonly changed: boolean; readonly againMs: number | undefined } {
    const { slots, revocations, clock } = this.#options;
    const againMs = revocations.settle(clock.nowMs());
    const signed = slots
      .list()
      .filter((slot) => slot.kind === 'x509' && isPublished(slot))
      .map((slot) => this.#refresh(slot));
    return { changed: signed.includes(true), againMs };
  }

  /** The last one of a key that is about to be deleted: it holds until all that the key signed has ended. */
  signLast(slot: Slot, untilMs: number): void {
    this.#options.revocations.settle(this.#options.clock.nowMs());
    this.#sign(slot, untilMs);
  }

  /** When the first of them has to be renewed. Unix ms. */
  nextDueMs(): number {
    const due = this.#options.slots.list().map((slot) => (isPublished(slot) ? renewalMs(slot) : undefined));
    return Math.min(...due.filter((ms) => ms !== undefined));
  }

  #refresh(slot: Slot): boolean {
    const { revocations, clock } = this.#options;
    const nowMs = clock.nowMs();
    const { crl } = slot;
    const built = this.#built.get(slot.keyId);
    // one from the future is of a clock that was set back since: nobody takes it now
    const timely = crl !== undefined && nowMs < renewalMs(slot)! && nowMs >= crl.thisUpdateMs;
    const same = () => built?.digest === digestOf(revocations.entriesOf(slot.id, built!.sinceMs));
    if (timely && built !== undefined && same()) return false;
    return this.#sign(slot, nowMs + CRL_TTL_MS);
  }

  #sign(slot: Slot, nextUpdateMs: number): boolean {
    const { slots, revocations, clock } = this.#options;
    // RFC 5280, section 3.3: a certificate is on one CRL that was issued after its end before it is on none
    const sinceMs = slot.crl?.thisUpdateMs ?? 0;
    const entries = revocations.entriesOf(slot.id, sinceMs);
    const key = this.#options.keyOf(slot);
    if (key === undefined) return false;
    const certificate = parseCertificate((slot.chain[0] ?? slot.roots[0])!);
    if (!certificate.ok) throw new CountersignError('internal', `the certificate of ${slot.id}: ${certificate.error}`);
    const second = Math.floor(clock.nowMs() / 1000);
    const thisUpdateMs = (second - BACKDATE_SECONDS) * 1000;
    // RFC 5280, section 5.2.3: it grows. With the clock where it can, so that a restored backup does not take it back.
    const number = Math.max((slot.crl?.number ?? 0) + 1, second);
    const fields = {
      issuerDer: certificate.value.subjectDer,
      authorityKeyId: Buffer.from(slot.id, 'hex'),
      number,
      thisUpdateMs,
      nextUpdateMs,
      entries,
    };
    slots.setCrl(slot.keyId, { der: signCrl(key, fields), number, thisUpdateMs, nextUpdateMs });
    this.#built.set(slot.keyId, { digest: digestOf(entries), sinceMs });
    revocations.forgetEnded(slot.id, sinceMs);
    return true;
  }
}

function renewalMs({ crl }: Slot): number | undefined {
  return crl === undefined ? undefined : (crl.thisUpdateMs + crl.nextUpdateMs) / 2;
}

function digestOf(entries: readonly CrlEntry[]): string {
  return hash('sha256', entries.map(({ serial }) => serial).join(' '));
}
