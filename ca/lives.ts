/** The lives of signing keys, as pure rules: what is due when, and what the bundle holds. authorities.ts does it. */
import { CountersignError } from '../src/base/errors.ts';
import type { JwtAuthority } from '../src/model/identity.ts';
import { type Certificate, parseCertificate } from '../src/pki/certificate.ts';
import type { MadeAuthority } from './authority.ts';
import type { KeyType } from './keys/key-type.ts';
import { isPublished, type Made, type Slot } from './slots.ts';

export type AuthorityKind = 'x509' | 'jwt';
export const KINDS: readonly AuthorityKind[] = ['x509', 'jwt'];

/** SPIFFE Trust Domain and Bundle, section 4.1.2: five minutes if nothing is said. */
const MAX_REFRESH_HINT_SECONDS = 300;

/** A signing key and where it is in its life. Times are Unix ms. */
export interface AuthorityInfo {
  readonly kind: AuthorityKind;
  /** x509: subject key identifier, lower-case hex; jwt: the kid. */
  readonly id: string;
  /** prepared: in the bundle, signs nothing yet. active: signs. old: in the bundle until nothing that it signed lives. revoked: its key is gone. */
  readonly state: 'prepared' | 'active' | 'old' | 'revoked';
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** What it signed is to be renewed. */
  readonly tainted: boolean;
  readonly keyType: KeyType;
  /** It was signed by an upstream authority: the bundle holds that one's root. */
  readonly upstream: boolean;
}

/** What vouches for the trust domain now. It holds an authority before that signs anything, and until nothing that it signed lives. */
export interface CaBundle {
  /** DER. */
  readonly authorities: Buffer[];
  readonly jwtAuthorities: JwtAuthority[];
  /** Grows with every change, and never goes back. */
  readonly sequence: bigint;
  readonly refreshHintSeconds: number;
  /** Subject key identifiers: what these signed is to be renewed now. */
  readonly taintedKeyIds: Buffer[];
}

/** When the next one is to be made: at half its life. Unix ms. */
export function preparationMs({ notBeforeMs, notAfterMs }: Slot): number {
  return notBeforeMs + (notAfterMs - notBeforeMs) / 2;
}

/**
 * When the prepared one is to sign: a sixth before the end of the active one. If it was prepared late (the server was down), verifiers get a
 * twelfth of a life, or half of what is left, to learn of it; with nothing left there is nothing to wait for. Unix ms.
 */
export function activationMs(active: Slot | undefined, prepared: Slot | undefined): number {
  if (prepared === undefined) return Number.POSITIVE_INFINITY;
  if (active === undefined) return prepared.notBeforeMs;
  const life = active.notAfterMs - active.notBeforeMs;
  const known = Math.min(prepared.notBeforeMs + life / 12, (prepared.notBeforeMs + active.notAfterMs) / 2);
  return Math.max(active.notAfterMs - life / 6, known);
}

/** @param lifeSeconds the shorter one of the two kinds of keys. */
export function bundleOf(slots: readonly Slot[], sequence: bigint, lifeSeconds: number): CaBundle {
  const published = slots.filter(isPublished);
  const x509 = published.filter(({ kind }) => kind === 'x509');
  const roots = new Map(x509.flatMap((slot) => slot.roots.map((der) => [der.toString('base64'), der] as const)));
  return {
    authorities: [...roots.values()],
    jwtAuthorities: published
      .filter(({ kind }) => kind === 'jwt')
      .map(({ id, publicKey, notAfterMs, tainted }) => ({ keyId: id, publicKey, expiresAtMs: notAfterMs, tainted })),
    sequence,
    // an authority is in the bundle for a third of its life before it signs: asked ten times in between
    refreshHintSeconds: Math.max(1, Math.min(MAX_REFRESH_HINT_SECONDS, Math.floor(lifeSeconds / 30))),
    taintedKeyIds: x509.filter(({ tainted }) => tainted).map(({ id }) => Buffer.from(id, 'hex')),
  };
}

/** undefined: nobody knows of it yet, or any more. */
export function infoOf(slot: Slot): AuthorityInfo | undefined {
  const { kind, id, state, notBeforeMs, notAfterMs, tainted, keyType, chain } = slot;
  if (state === 'making' || state === 'leaving') return undefined;
  return { kind, id, state, notBeforeMs, notAfterMs, tainted, keyType, upstream: chain.length > 0 };
}

/** What a slot holds of an authority with a certificate. */
export function madeOf({ certificate, chain, roots }: MadeAuthority): Made {
  return {
    id: certificate.subjectKeyId!.toString('hex'),
    publicKey: certificate.spki,
    chain,
    roots,
    notBeforeMs: certificate.notBeforeMs,
    // none of its certificates outlives the chain above it
    notAfterMs: Math.min(certificate.notAfterMs, ...chain.map((der) => certificateOf(der).notAfterMs)),
  };
}

export function certificateOf(der: Buffer): Certificate {
  const parsed = parseCertificate(der);
  if (!parsed.ok) throw new CountersignError('internal', `a certificate of an authority: ${parsed.error}`);
  return parsed.value;
}
