/** Production code against a second reading of the RFC, over real TLS connections, in both directions and both roles. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  createAuthenticator,
  createEmptyAuthenticator,
  verifyAuthenticator,
} from '../../../src/auth/rfc9261/authenticator.ts';
import { createRequest } from '../../../src/auth/rfc9261/request.ts';
import type { Svid } from '../../../src/model/identity.ts';
import { createTestAuthority, type TestAuthority } from '../channel/certificates.ts';
import * as reading from './reading.ts';
import { openTlsPair, type TlsPair } from './tls-pair.ts';

const PSS = { padding: 6, saltLength: -1 };
const kinds = [
  { name: 'P-256', code: 0x0403, hash: 'sha256', genpkey: ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256'] },
  { name: 'P-384', code: 0x0503, hash: 'sha384', genpkey: ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-384'] },
  { name: 'RSA, SHA-256', code: 0x0804, hash: 'sha256', genpkey: ['-algorithm', 'RSA'], signWith: PSS },
  { name: 'RSA, SHA-384', code: 0x0805, hash: 'sha384', genpkey: ['-algorithm', 'RSA'], signWith: PSS },
  { name: 'RSA, SHA-512', code: 0x0806, hash: 'sha512', genpkey: ['-algorithm', 'RSA'], signWith: PSS },
] as const;

let authority: TestAuthority;
const svids = new Map<string, Svid>();
const pairs: TlsPair[] = [];
beforeAll(async () => {
  authority = createTestAuthority('example.org');
  for (const { name, genpkey } of kinds) {
    svids.set(name, authority.issue({ spiffeId: 'spiffe://example.org/w', key: genpkey }));
  }
  pairs.push(await openTlsPair(svids.get('P-256')!));
  pairs.push(await openTlsPair(svids.get('P-256')!, 'TLS_AES_128_GCM_SHA256'));
});
afterAll(() => {
  for (const pair of pairs) pair.close();
  authority.close();
});

const others = { client: 'server', server: 'client' } as const;
const ends = (pair: TlsPair, role: reading.Role) =>
  role === 'client' ? { socket: pair.client, keys: pair.clientKeys } : { socket: pair.server, keys: pair.serverKeys };

for (const suite of [0, 1]) {
  for (const prover of ['client', 'server'] as const) {
    describe(`${suite === 0 ? 'SHA-384' : 'SHA-256'}, proven by the ${prover}`, () => {
      const requester = others[prover];

      it('makes the request that the RFC describes', () => {
        const pair = pairs[suite]!;
        const context = randomBytes(25);
        const codes = kinds.map(({ code }) => code);
        const expected = reading.request(requester, context, reading.signatureAlgorithms(codes));
        expect(createRequest(ends(pair, requester).keys, context)).toEqual(expected);
      });

      for (const { name, code, hash, genpkey: _, ...more } of kinds) {
        it(`makes an authenticator with ${name} that the second reading accepts`, () => {
          const pair = pairs[suite]!;
          const svid = svids.get(name)!;
          const asked = reading.request(requester, randomBytes(8), reading.signatureAlgorithms([code]));
          const made = createAuthenticator(ends(pair, prover).keys, asked, svid);
          if (!made.ok) throw new Error(made.error);
          expect(reading.check(ends(pair, requester).socket, prover, asked, made.value)).toEqual(svid.chain);
        });

        it(`accepts an authenticator with ${name} that the second reading made`, () => {
          const pair = pairs[suite]!;
          const svid = svids.get(name)!;
          const context = randomBytes(25);
          const asked = createRequest(ends(pair, requester).keys, context);
          const made = reading.authenticator({
            socket: ends(pair, prover).socket,
            sender: prover,
            request: asked,
            context,
            entries: svid.chain.map((der) => ({ der })),
            key: svid.privateKey,
            code,
            hash,
            ...more,
          });
          expect(verifyAuthenticator(ends(pair, requester).keys, asked, made)).toEqual({
            ok: true,
            value: { kind: 'proved', chain: svid.chain },
          });
        });
      }

      it('refuses as the RFC says, and understands a refusal', () => {
        const pair = pairs[suite]!;
        const context = randomBytes(25);
        const asked = createRequest(ends(pair, requester).keys, context);
        const theirs = reading.emptyAuthenticator(ends(pair, prover).socket, prover, asked, context);
        const ours = createEmptyAuthenticator(ends(pair, prover).keys, asked);
        expect(ours).toEqual({ ok: true, value: theirs });
        expect(verifyAuthenticator(ends(pair, requester).keys, asked, theirs)).toEqual({
          ok: true,
          value: { kind: 'refused' },
        });
      });

      it('ignores extensions of a request that it does not know, and takes its first scheme that fits', () => {
        const pair = pairs[suite]!;
        const svid = svids.get('RSA, SHA-256')!;
        const extensions = Buffer.concat([
          reading.extension(0xfafa, randomBytes(5)),
          reading.signatureAlgorithms([0x0807, 0x0403, 0x0806, 0x0804]),
        ]);
        const asked = reading.request(requester, randomBytes(3), extensions);
        const made = createAuthenticator(ends(pair, prover).keys, asked, svid);
        if (!made.ok) throw new Error(made.error);
        expect(reading.check(ends(pair, requester).socket, prover, asked, made.value)).toEqual(svid.chain);
        const verifyMessage = 4 + made.value.readUIntBE(1, 3);
        expect(made.value.readUInt16BE(verifyMessage + 4)).toBe(0x0806);
      });
    });
  }
}
