import { describe, expect, it } from 'vitest';
import { readKeyKind, readSignatureAlgorithm } from '../../../src/pki/algorithms.ts';
import { der, derBitString, derOid, derUnsignedInteger, readDer, sequence, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';

const signature = (...parameters: Buffer[]) =>
  readDer(sequence(derOid(OID.rsaSha256), ...parameters), 4096, readSignatureAlgorithm);
const rsaKey = sequence(derUnsignedInteger(Buffer.alloc(256, 0xff)), derUnsignedInteger(Buffer.of(1, 0, 1)));
const key = (...parameters: Buffer[]) =>
  readDer(sequence(sequence(derOid(OID.rsaEncryption), ...parameters), derBitString(rsaKey)), 4096, readKeyKind);

describe('parameters of RSA in an AlgorithmIdentifier (RFC 4055)', () => {
  it('are NULL or absent', () => {
    for (const parameters of [[der(TAG.null)], []]) {
      expect(signature(...parameters)).toEqual({ ok: true, value: 'rsaSha256' });
      expect(key(...parameters)).toEqual({ ok: true, value: 'rsa' });
    }
  });

  it('are not a NULL with content, which would be a second spelling of what was signed', () => {
    const filled = der(TAG.null, Buffer.of(1, 2, 3));
    expect(signature(filled)).toEqual({ ok: false, error: 'a NULL with content' });
    expect(key(filled)).toEqual({ ok: false, error: 'a NULL with content' });
  });

  it('are nothing else', () => {
    const other = der(TAG.octetString, Buffer.of(1));
    expect(signature(other)).toEqual({ ok: true, value: undefined });
    expect(key(other)).toEqual({ ok: true, value: undefined });
  });
});
