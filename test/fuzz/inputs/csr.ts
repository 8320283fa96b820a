/** Certification requests: only one that its key's holder signed, whole, gives a key. */
import { createPublicKey } from 'node:crypto';
import type { Result } from '../../../src/base/errors.ts';
import { SIGNATURE_IDENTIFIERS } from '../../../src/pki/algorithms.ts';
import { verifyCsr } from '../../../src/pki/csr.ts';
import { derOid, readDer, sequence, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import type { Random } from '../random.ts';
import { damage, damageElement } from './mutate.ts';
import { csrs, ders } from './samples.ts';
import { hold, type Target } from './target.ts';

/** RFC 4055, section 5: the NULL of an RSA signature's algorithm is written, its absence is accepted. */
const RSA_WITHOUT_NULL = sequence(derOid(OID.rsaSha256));

const signedParts = (csr: Buffer) =>
  readDer(csr, csr.length, (reader) => {
    const outer = reader.enter(TAG.sequence);
    const [info, algorithm, signature] = [
      outer.whole(TAG.sequence),
      outer.whole(TAG.sequence),
      outer.whole(TAG.bitString),
    ];
    outer.end();
    const written = algorithm.equals(RSA_WITHOUT_NULL) ? SIGNATURE_IDENTIFIERS.rsaSha256 : algorithm;
    return Buffer.concat([info, written, signature]).toString('latin1');
  });

const untouched = new Set(csrs.map((csr) => value(signedParts(csr))));

function value<T>(result: Result<T, string>): T {
  if (!result.ok) throw new Error(result.error);
  return result.value;
}

export const requests: Target = {
  name: 'csr',
  make(random: Random) {
    const sample = random.pick(csrs);
    return random.oneIn(3) ? damage(random, sample, ders) : damageElement(random, sample, ders);
  },
  check(input) {
    const bytes = input as Buffer;
    const verified = verifyCsr(bytes);
    if (!verified.ok) return false;
    hold('only a request that its holder signed is taken', untouched.has(value(signedParts(bytes))));
    createPublicKey({ key: verified.value, format: 'der', type: 'spki' });
    return true;
  },
};
