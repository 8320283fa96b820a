import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { generateKey, privateKeyFromPem, privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { decodePem, encodePem } from '../../../src/pki/pem.ts';

describe('PEM', () => {
  it('is read back as it was written, in order', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { minLength: 1, maxLength: 4 }),
        (blocks) => {
          const text = blocks.map((block) => encodePem('CERTIFICATE', block)).join('# between\n');
          expect(decodePem(text, 'CERTIFICATE')).toEqual(blocks.map((block) => Buffer.from(block)));
        },
      ),
    );
  });

  it('passes over blocks of other labels', () => {
    const text = encodePem('PRIVATE KEY', Buffer.of(1)) + encodePem('CERTIFICATE', Buffer.of(2));
    expect(decodePem(text, 'CERTIFICATE')).toEqual([Buffer.of(2)]);
  });

  it.each([
    ['nothing', '', /no PEM block/],
    ['no end', '-----BEGIN CERTIFICATE-----\nAAAA\n', /line 1: .*no end/],
    ['not base64', '\n-----BEGIN CERTIFICATE-----\nA?AA\n-----END CERTIFICATE-----\n', /line 2: .*not base64/],
    ['an empty block', '-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n', /not base64/],
    [
      'a block within a block',
      '-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n',
      /not base64/,
    ],
  ])('refuses %s and says where', (_, text, message) => {
    expect(() => decodePem(text, 'CERTIFICATE')).toThrow(message);
  });
});

describe('a private key', () => {
  it('is read back from its PEM', () => {
    const key = generateKey();
    expect(publicKeyDer(privateKeyFromPem(privateKeyPem(key)))).toEqual(publicKeyDer(key));
  });

  it('that is broken is refused without a word of its content', () => {
    const text = encodePem('PRIVATE KEY', Buffer.from('deadbeefdeadbeef', 'hex'));
    expect(() => privateKeyFromPem(text)).toThrow(/^not a PKCS#8 private key$/);
  });
});
