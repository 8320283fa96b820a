/** What must not be accepted: other channels, other requests, other senders, altered, cut and extended messages. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  createAuthenticator,
  createEmptyAuthenticator,
  verifyAuthenticator,
} from '../../../src/auth/rfc9261/authenticator.ts';
import { RequestLedger } from '../../../src/auth/rfc9261/ledger.ts';
import { createRequest, parseRequest } from '../../../src/auth/rfc9261/request.ts';
import type { Svid } from '../../../src/model/identity.ts';
import { createTestAuthority, type TestAuthority } from '../channel/certificates.ts';
import * as reading from './reading.ts';
import { openTlsPair, type TlsPair } from './tls-pair.ts';

let authority: TestAuthority;
let svid: Svid;
let stranger: Svid;
let rsa: Svid;
let pair: TlsPair;
let otherPair: TlsPair;
beforeAll(async () => {
  authority = createTestAuthority('example.org');
  svid = authority.issue({ spiffeId: 'spiffe://example.org/w' });
  stranger = authority.issue({ spiffeId: 'spiffe://example.org/x' });
  rsa = authority.issue({ spiffeId: 'spiffe://example.org/r', key: ['-algorithm', 'RSA'] });
  pair = await openTlsPair(svid);
  otherPair = await openTlsPair(svid);
});
afterAll(() => {
  pair.close();
  otherPair.close();
  authority.close();
});

/** The client asks, the server proves, unless said otherwise. */
function ask() {
  const context = randomBytes(25);
  return { context, asked: createRequest(pair.clientKeys, context) };
}

function prove(asked: Buffer, with_ = svid): Buffer {
  const made = createAuthenticator(pair.serverKeys, asked, with_);
  if (!made.ok) throw new Error(made.error);
  return made.value;
}

/** By the second reading, so that it can be wrong in one point. */
function forge(change: Partial<reading.Making> & { asked?: Buffer } = {}) {
  const { context, asked } = ask();
  const making: reading.Making = {
    socket: pair.server,
    sender: 'server',
    request: asked,
    context,
    entries: [{ der: svid.chain[0]! }],
    key: svid.privateKey,
    code: 0x0403,
    hash: 'sha256',
    ...change,
  };
  return verifyAuthenticator(pair.clientKeys, asked, reading.authenticator(making));
}

const refused = (error: string) => ({ ok: false, error });

describe('an authenticator', () => {
  it('is accepted as the second reading forges it without a fault', () => {
    expect(forge()).toMatchObject({ ok: true });
  });

  it('of another channel is refused', () => {
    const { asked } = ask();
    expect(verifyAuthenticator(otherPair.clientKeys, asked, prove(asked))).toEqual(refused('AUTH_BAD_FINISHED'));
    const empty = createEmptyAuthenticator(pair.serverKeys, asked);
    if (!empty.ok) throw new Error(empty.error);
    expect(verifyAuthenticator(otherPair.clientKeys, asked, empty.value)).toEqual(refused('AUTH_BAD_FINISHED'));
  });

  it('that answers another request is refused, with the same context too', () => {
    const { context, asked } = ask();
    const answer = prove(asked);
    expect(verifyAuthenticator(pair.clientKeys, ask().asked, answer)).toEqual(refused('AUTH_BAD_AUTHENTICATOR'));
    const similar = reading.request('client', context, reading.signatureAlgorithms([0x0403]));
    expect(verifyAuthenticator(pair.clientKeys, similar, answer)).toEqual(refused('AUTH_BAD_FINISHED'));
    const empty = createEmptyAuthenticator(pair.serverKeys, asked);
    if (!empty.ok) throw new Error(empty.error);
    expect(verifyAuthenticator(pair.clientKeys, ask().asked, empty.value)).toEqual(refused('AUTH_BAD_FINISHED'));
  });

  it('sent back to its maker is refused', () => {
    const { asked } = ask();
    const answer = prove(asked);
    // As an answer to the maker's own request with the same context, which it would have to issue first.
    const { value } = parseRequest(asked, 'client') as { value: { context: Buffer } };
    const own = createRequest(pair.serverKeys, value.context);
    expect(verifyAuthenticator(pair.serverKeys, own, answer)).toEqual(refused('AUTH_BAD_FINISHED'));
    expect(verifyAuthenticator(pair.serverKeys, asked, answer)).toEqual(refused('AUTH_BAD_REQUEST'));
  });

  it("is not made for a request of one's own side: a request cannot be reflected", () => {
    const { asked } = ask();
    expect(createAuthenticator(pair.clientKeys, asked, svid)).toEqual(refused('AUTH_BAD_REQUEST'));
    expect(createEmptyAuthenticator(pair.clientKeys, asked)).toEqual(refused('AUTH_BAD_REQUEST'));
  });

  it('signed or authenticated in the other role is refused', () => {
    expect(forge({ sender: 'client' })).toEqual(refused('AUTH_BAD_FINISHED'));
  });

  it('with a certificate whose key the peer does not have is refused', () => {
    expect(forge({ key: stranger.privateKey })).toEqual(refused('AUTH_BAD_SIGNATURE'));
    // The second certificate's key does not speak for the first.
    const entries = [{ der: svid.chain[0]! }, { der: stranger.chain[0]! }];
    expect(forge({ key: stranger.privateKey, entries })).toEqual(refused('AUTH_BAD_SIGNATURE'));
  });

  it('signed under another context string is refused: a TLS handshake signature does not serve', () => {
    expect(forge({ contextString: 'TLS 1.3, server CertificateVerify' })).toEqual(refused('AUTH_BAD_SIGNATURE'));
  });

  it('with a scheme that was not offered, or does not fit the key, is refused', () => {
    const entries = [{ der: rsa.chain[0]! }];
    // rsa_pkcs1_sha256: right signature, but no scheme of TLS 1.3 certificates' proofs
    expect(forge({ entries, key: rsa.privateKey, code: 0x0401 })).toEqual(refused('AUTH_BAD_SIGNATURE'));
    expect(forge({ entries, key: rsa.privateKey, code: 0x0403 })).toEqual(refused('AUTH_BAD_SIGNATURE'));
    expect(forge({ code: 0x0503, hash: 'sha384' })).toEqual(refused('AUTH_BAD_SIGNATURE'));
    const context = randomBytes(4);
    const asked = reading.request('client', context, reading.signatureAlgorithms([0x0503]));
    const made = reading.authenticator({
      ...{ socket: pair.server, sender: 'server', request: asked, context, entries: [{ der: svid.chain[0]! }] },
      ...{ key: svid.privateKey, code: 0x0403, hash: 'sha256' },
    });
    expect(verifyAuthenticator(pair.clientKeys, asked, made)).toEqual(refused('AUTH_BAD_SIGNATURE'));
    expect(createAuthenticator(pair.serverKeys, asked, svid)).toEqual(refused('AUTH_REFUSED'));
  });

  it('whose Certificate echoes another context, holds extensions, no or too many certificates is refused', () => {
    expect(forge({ context: randomBytes(25) })).toEqual(refused('AUTH_BAD_AUTHENTICATOR'));
    const status = reading.extension(5, Buffer.from([1, 0, 0, 1, 0]));
    expect(forge({ entries: [{ der: svid.chain[0]!, extensions: status }] })).toEqual(
      refused('AUTH_BAD_AUTHENTICATOR'),
    );
    expect(forge({ entries: [] })).toEqual(refused('AUTH_BAD_AUTHENTICATOR'));
    expect(forge({ entries: Array(9).fill({ der: svid.chain[0]! }) })).toEqual(refused('AUTH_BAD_AUTHENTICATOR'));
    expect(forge({ entries: [{ der: Buffer.from('no certificate') }] })).toEqual(refused('CERT_MALFORMED'));
  });

  it('is refused when cut or extended at any octet', () => {
    const { asked } = ask();
    const answer = prove(asked);
    for (let length = 0; length < answer.length; length++) {
      expect(verifyAuthenticator(pair.clientKeys, asked, answer.subarray(0, length)).ok, `cut at ${length}`).toBe(
        false,
      );
    }
    for (let at = 0; at <= answer.length; at++) {
      const longer = Buffer.concat([answer.subarray(0, at), Buffer.from([0]), answer.subarray(at)]);
      expect(verifyAuthenticator(pair.clientKeys, asked, longer).ok, `extended at ${at}`).toBe(false);
    }
    expect(verifyAuthenticator(pair.clientKeys, asked, Buffer.concat([answer, answer]))).toEqual(
      refused('AUTH_BAD_AUTHENTICATOR'),
    );
  });

  it('is refused when any bit of it or of its request is turned', () => {
    const { asked } = ask();
    const answer = prove(asked);
    const empty = createEmptyAuthenticator(pair.serverKeys, asked);
    if (!empty.ok) throw new Error(empty.error);
    for (const original of [answer, empty.value]) {
      for (let bit = 0; bit < original.length * 8; bit += 3) {
        const altered = Buffer.from(original);
        altered[bit >> 3]! ^= 1 << (bit & 7);
        expect(verifyAuthenticator(pair.clientKeys, asked, altered).ok, `bit ${bit}`).toBe(false);
      }
    }
    for (let bit = 0; bit < asked.length * 8; bit++) {
      const altered = Buffer.from(asked);
      altered[bit >> 3]! ^= 1 << (bit & 7);
      expect(verifyAuthenticator(pair.clientKeys, altered, answer).ok, `request bit ${bit}`).toBe(false);
    }
  });
});

describe('a request', () => {
  it('is refused when cut or extended at any octet', () => {
    const { asked } = ask();
    for (let length = 0; length < asked.length; length++) {
      expect(parseRequest(asked.subarray(0, length), 'client'), `cut at ${length}`).toEqual(
        refused('AUTH_BAD_REQUEST'),
      );
    }
    for (let at = 0; at <= asked.length; at++) {
      const longer = Buffer.concat([asked.subarray(0, at), Buffer.from([0]), asked.subarray(at)]);
      const parsed = parseRequest(longer, 'client');
      expect(parsed.ok, `extended at ${at}`).toBe(false);
    }
  });

  it('is refused without a context, without schemes, with an extension twice, of the other side, or too large', () => {
    const schemes = reading.signatureAlgorithms([0x0403]);
    const context = randomBytes(8);
    const bad = [
      reading.request('client', Buffer.alloc(0), schemes),
      reading.request('client', context, reading.extension(0, Buffer.alloc(2))),
      reading.request('client', context, reading.signatureAlgorithms([])),
      reading.request('client', context, reading.extension(13, Buffer.from([0, 3, 4, 3, 4]))),
      reading.request('client', context, Buffer.concat([schemes, schemes])),
      reading.request('client', context, Buffer.alloc(0)),
      reading.request('server', context, schemes),
      reading.request('client', context, Buffer.concat([schemes, reading.extension(99, Buffer.alloc(5000))])),
    ];
    for (const octets of bad) expect(parseRequest(octets, 'client')).toEqual(refused('AUTH_BAD_REQUEST'));
    expect(() => createRequest(pair.clientKeys, Buffer.alloc(0))).toThrow(RangeError);
    expect(() => createRequest(pair.clientKeys, Buffer.alloc(256))).toThrow(RangeError);
  });
});

describe('the ledger', () => {
  const clock = (() => {
    let now = 0n;
    return { bootNs: () => now, advanceMs: (ms: number) => (now += BigInt(ms) * 1_000_000n) };
  })();
  const limits = { open: 3, deadlineMs: 1_000 };
  const ledgers = () => ({
    client: new RequestLedger(pair.clientKeys, clock, limits),
    server: new RequestLedger(pair.serverKeys, clock, limits),
  });
  const issue = (ledger: RequestLedger): Buffer => {
    const issued = ledger.issue();
    if (!issued.ok) throw new Error(issued.error);
    return issued.value;
  };

  it('takes an answer once: the same one again on the same channel is refused', () => {
    const { client } = ledgers();
    const asked = issue(client);
    const answer = prove(asked);
    expect(client.answer(asked, answer)).toMatchObject({ ok: true, value: { kind: 'proved' } });
    expect(client.answer(asked, answer)).toEqual(refused('AUTH_CONTEXT_REUSED'));
    expect(client.size).toBe(0);
  });

  it('forgets a request after a wrong answer too: no second guess', () => {
    const { client } = ledgers();
    const asked = issue(client);
    expect(client.answer(asked, Buffer.alloc(60))).toEqual(refused('AUTH_BAD_AUTHENTICATOR'));
    expect(client.answer(asked, prove(asked))).toEqual(refused('AUTH_CONTEXT_REUSED'));
  });

  it('does not know a request that it did not issue, not even with an issued context', () => {
    const { client } = ledgers();
    const asked = issue(client);
    const context = asked.subarray(5, 5 + asked[4]!);
    const similar = reading.request('client', context, reading.signatureAlgorithms([0x0403]));
    expect(client.answer(similar, prove(similar))).toEqual(refused('AUTH_CONTEXT_REUSED'));
    expect(client.answer(asked, prove(asked))).toMatchObject({ ok: true });
  });

  it('never issues a context twice, and not one that the other side could', () => {
    const { client, server } = ledgers();
    const contexts = new Set<string>();
    for (let i = 0; i < 500; i++) {
      for (const ledger of [client, server]) {
        const asked = issue(ledger);
        contexts.add(asked.subarray(5, 5 + asked[4]!).toString('hex'));
        ledger.cancel(asked);
      }
    }
    expect(contexts.size).toBe(1000);
    expect(new Set([...contexts].map((hex) => hex.slice(0, 2))).size).toBe(2);
  });

  it('is bounded, and frees what is past its deadline', () => {
    const { client } = ledgers();
    const first = issue(client);
    issue(client);
    issue(client);
    expect(client.issue()).toEqual(refused('AUTH_QUEUE_FULL'));
    clock.advanceMs(1_000);
    const late = issue(client);
    expect(client.size).toBe(1);
    expect(client.answer(first, prove(first))).toEqual(refused('AUTH_CONTEXT_REUSED'));
    clock.advanceMs(1_000);
    expect(client.answer(late, prove(late))).toEqual(refused('AUTH_TIMEOUT'));
  });

  it('lets a request of the peer be answered once and in order', () => {
    const { client, server } = ledgers();
    const one = issue(client);
    const two = issue(client);
    expect(server.admit(one)).toEqual({ ok: true, value: undefined });
    expect(server.admit(one)).toEqual(refused('AUTH_CONTEXT_REUSED'));
    expect(server.admit(two)).toEqual({ ok: true, value: undefined });
    expect(server.admit(one)).toEqual(refused('AUTH_CONTEXT_REUSED'));
    expect(client.admit(one)).toEqual(refused('AUTH_BAD_REQUEST'));
    const foreign = reading.request('client', randomBytes(25).fill(9, 0, 1), reading.signatureAlgorithms([0x0403]));
    expect(server.admit(foreign)).toEqual(refused('AUTH_BAD_REQUEST'));
  });
});
