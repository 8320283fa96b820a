/** A root that somebody else keeps, and an authority under it that signs whatever a test tells it to: as with an upstream CA. */
import type { TrustBundle } from '../../../../src/model/identity.ts';
import { contextPrimitive, der, sequence, TAG } from '../../../../src/pki/der.ts';
import { OID } from '../../../../src/pki/oids.ts';
import { bundleOf, ca, extension, type Forged, type ForgeOptions, HOUR, leaf, name } from './forge.ts';

export interface Upstream {
  readonly root: Forged;
  readonly intermediate: Forged;
  /** Subject key identifiers, lower-case hex. */
  readonly rootKeyId: string;
  readonly intermediateKeyId: string;
  readonly bundle: TrustBundle;
  /** Leaf and intermediate, as an SVID's chain is. */
  sign(options: ForgeOptions): Forged[];
}

/** @param number tells it from others of the same test */
export function upstream(nowMs: number, number = 1): Upstream {
  const times = { notBeforeMs: nowMs - HOUR, notAfterMs: nowMs + HOUR };
  const rootKeyId = `aa${String(number).padStart(2, '0')}`.padEnd(40, '0');
  const intermediateKeyId = `bb${String(number).padStart(2, '0')}`.padEnd(40, '0');
  const root = ca({ ...times, subject: name(`Corporate root ${number}`), uris: [], more: [keyId(rootKeyId)] });
  const intermediate = ca({
    ...times,
    issuer: root,
    subject: name(`Trust domain ${number}`),
    more: [keyId(intermediateKeyId), signerId(rootKeyId)],
  });
  return {
    root,
    intermediate,
    rootKeyId,
    intermediateKeyId,
    bundle: bundleOf(root),
    sign: ({ more = [], ...options }) => [
      leaf(intermediate, { ...times, ...options, more: [signerId(intermediateKeyId), ...more] }),
      intermediate,
    ],
  };
}

const keyId = (hex: string) =>
  extension(OID.subjectKeyIdentifier, der(TAG.octetString, Buffer.from(hex, 'hex')), false);
const signerId = (hex: string) =>
  extension(OID.authorityKeyIdentifier, sequence(der(contextPrimitive(0), Buffer.from(hex, 'hex'))), false);
