/** What an upstream authority is asked with: a PKCS#10 request (RFC 2986) for an intermediate of our trust domain. */
import type { TrustDomain } from '../src/model/ids.ts';
import { contextConstructed, der, derBitString, derUnsignedInteger, sequence, TAG } from '../src/pki/der.ts';
import { OID_DER } from '../src/pki/oids.ts';
import { authorityExtensionRequest, authorityName } from './build.ts';
import type { Signable, SigningKey } from './keys/key-manager.ts';
import { SIGNING } from './keys/key-type.ts';

const VERSION_0 = derUnsignedInteger(Buffer.of(0));

/** DER. Name, SPIFFE ID, CA and key usage are asked for; an upstream may give its own. @throws CountersignError unavailable */
export function authorityRequest(key: SigningKey, trustDomain: TrustDomain): Buffer {
  // RFC 2985, section 5.4.2
  const extensions = sequence(OID_DER.extensionRequest, der(TAG.set, authorityExtensionRequest(trustDomain)));
  const info = sequence(
    VERSION_0,
    authorityName('intermediate', key.publicKey),
    key.publicKey,
    der(contextConstructed(0), extensions),
  );
  return sequence(info, SIGNING[key.type].identifier, derBitString(key.sign(info as Signable)));
}
