import { createPublicKey, type KeyObject, sign } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { IssueRequest, IssueResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import { type Certificate, parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { contextConstructed, der, derBitString, derOid, sequence, TAG } from '../../../src/pki/der.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import * as forge from '../pki/support/forge.ts';
import { ENTRIES, TestServer, TRUST_DOMAIN, until } from './harness.ts';

/** RFC 2985, section 5.4.2. */
const EXTENSION_REQUEST = '1.2.840.113549.1.9.14';

let server: TestServer;
let a: ServerClient;
let b: ServerClient;
beforeAll(async () => {
  server = await TestServer.start();
  a = await server.joined('node-a');
  b = await server.joined('node-b');
});
afterAll(() => server[Symbol.asyncDispose]());

interface CsrOptions {
  key?: KeyObject;
  signer?: KeyObject;
  subject?: Buffer;
  extensions?: Buffer[];
  algorithm?: 'ecdsaSha256' | 'rsaSha256';
  spki?: Buffer;
}

/** A request in which anything can be asked for. */
function csrWith({
  key = generateKey(),
  signer = key,
  subject = forge.EMPTY_NAME,
  extensions = [],
  algorithm = 'ecdsaSha256',
  spki = publicKeyDer(createPublicKey(key)),
}: CsrOptions = {}): Buffer {
  const wanted =
    extensions.length === 0 ? [] : [sequence(derOid(EXTENSION_REQUEST), der(TAG.set, sequence(...extensions)))];
  const info = sequence(Buffer.from([TAG.integer, 1, 0]), subject, spki, der(contextConstructed(0), ...wanted));
  const signature = sign('sha256', info, signer);
  return sequence(info, sequence(derOid(OID[algorithm])), derBitString(signature));
}

/** What comes of a request for the node's own entry, over the whole way. */
async function ask(csr: Buffer): Promise<Certificate | string> {
  const [issued] = await a.issue([{ entryId: 'frontend', csr }]);
  if (!issued!.ok) return issued!.error;
  const leaf = parseCertificate(issued!.value[0]!);
  if (!leaf.ok) throw new Error(leaf.error);
  return leaf.value;
}

const san = (...names: Buffer[]) => forge.extension(OID.subjectAltName, sequence(...names), false);

describe('a certificate request', () => {
  test('gets nothing of what it says but its key', async () => {
    const key = generateKey();
    const greedy = csrWith({
      key,
      subject: forge.name('root'),
      extensions: [
        san(
          forge.uri('spiffe://example.org/backend'),
          forge.uri('spiffe://example.org/countersign/server'),
          forge.dns('backend.example.org'),
        ),
        forge.extension(OID.basicConstraints, sequence(Buffer.from([1, 1, 0xff])), true),
        forge.extension(OID.keyUsage, forge.bits([forge.KU.keyCertSign, forge.KU.crlSign]), true),
        forge.extension(OID.extKeyUsage, sequence(derOid(OID.anyExtendedKeyUsage)), false),
        forge.extension(OID.nodeIncarnation, der(TAG.utf8String, Buffer.from('99')), false),
      ],
    });
    const issued = await ask(greedy);
    const plain = (await ask(csrWith())) as Certificate;
    expect(issued).toMatchObject({
      spiffeId: 'spiffe://example.org/frontend',
      uriSanCount: 1,
      dnsNames: [],
      isCa: false,
      nodeIncarnation: undefined,
      nodeBinding: 'spiffe://example.org/node/node-a',
      keyUsage: plain.keyUsage,
      extKeyUsage: plain.extKeyUsage,
    });
    expect((issued as Certificate).subjectDer).toEqual(plain.subjectDer);
    expect((issued as Certificate).spki).toEqual(publicKeyDer(key));
  });

  test('of a weak or unknown key is refused', async () => {
    const weak = csrWith({ key: forge.rsaKey(1024), algorithm: 'rsaSha256' });
    // RSA's AlgorithmIdentifier may leave its parameters out (RFC 4055, section 5)
    expect(await ask(weak)).toBe('CERT_WEAK_KEY');
    expect(await ask(csrWith({ key: forge.keyOf('secp256k1') }))).toBe('CERT_WEAK_KEY');
    expect(await ask(csrWith({ key: forge.keyOf('P-521') }))).toBe('CERT_WEAK_KEY');
  });

  test('that another key signed, or nobody, is refused', async () => {
    expect(await ask(csrWith({ signer: generateKey() }))).toBe('ISSUE_CSR_INVALID');
    const [other] = [generateKey()];
    expect(await ask(csrWith({ spki: publicKeyDer(createPublicKey(other!)) }))).toBe('ISSUE_CSR_INVALID');
    const cut = csrWith();
    expect(await ask(cut.subarray(0, cut.length - 3))).toBe('ISSUE_CSR_INVALID');
    expect(await ask(Buffer.concat([cut, Buffer.alloc(1)]))).toBe('ISSUE_CSR_INVALID');
    expect(await ask(Buffer.alloc(0))).toBe('ISSUE_CSR_INVALID');
  });

  test('with 1 MB of names is refused, and the connection that it came on goes on', async () => {
    const names = (bytes: number) => {
      const name = forge.dns('x'.repeat(200));
      return san(...Array.from({ length: Math.ceil(bytes / name.length) }, () => name));
    };
    // what gRPC lets through is not read further than a request may be long
    expect(await ask(csrWith({ extensions: [names(1_000_000)] }))).toBe('ISSUE_CSR_INVALID');
    // what is more than a message may have does not come as far
    await expect(ask(csrWith({ extensions: [names(1 << 20)] }))).rejects.toMatchObject({ code: 'exhausted' });
    expect(await ask(csrWith())).toMatchObject({ spiffeId: 'spiffe://example.org/frontend' });
    expect(a.status().connected).toBe(true);
  });
});

test("an agent that asks for another node's entry gets nothing and learns nothing", async () => {
  const [foreign, unknown] = await a.issue([
    { entryId: 'backend', csr: csrWith() },
    { entryId: 'no-such-entry', csr: csrWith() },
  ]);
  expect(foreign).toEqual({ ok: false, error: 'ISSUE_NOT_YOUR_ENTRY' });
  expect(foreign).toEqual(unknown);
  const raw = async (entryId: string) => {
    const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
    const svid = a.node.svid();
    const connection = new Connection({ addresses: [server.address], bundle, svid, clock: server.clock });
    const request: IssueRequest = { csrs: [{ entryId, csr: createCsr(generateKey()) }] };
    const { results } = await connection.unary<IssueRequest, IssueResponse>('issue', request, 5000);
    connection.close();
    return results[0]?.outcome;
  };
  // to the word
  expect(await raw('backend')).toEqual(await raw('no-such-entry'));
  expect(a.entries().map(({ id }) => id)).toEqual(['frontend']);
  expect(b.entries().map(({ id }) => id)).toEqual(['backend']);
  const refused = server.auditLines().filter(({ reason }) => reason === 'ISSUE_NOT_YOUR_ENTRY');
  expect(refused[0]).toMatchObject({ actor: 'spiffe://example.org/node/node-a', detail: { entry: 'backend' } });
  // what is not its own is not named either
  expect(refused[0]!.source).toEqual({ node: 'node-a' });
});

const path = (bytes: number) => {
  const begin = `spiffe://${TRUST_DOMAIN}/`;
  return begin + 'a'.repeat(bytes - begin.length);
};

/** SPIFFE-ID, section 2. What the fault is called stands in the error. */
const ids: [string, string, string | undefined][] = [
  ['of 2,048 bytes', path(2048), undefined],
  ['of every character that a path may have', 'spiffe://example.org/A-Z/a_z/0.9/..a/...', undefined],
  ['of 2,049 bytes', path(2049), '2048 bytes'],
  ['of a trust domain of 255 bytes that is not ours', `spiffe://${'a'.repeat(255)}/x`, 'is not of the trust domain'],
  ['of a trust domain of 256 bytes', `spiffe://${'a'.repeat(256)}/x`, '255 bytes'],
  ['with an empty segment', 'spiffe://example.org/a//b', 'empty segment'],
  ['with a trailing slash', 'spiffe://example.org/a/', 'end in a slash'],
  ['with a segment of one dot', 'spiffe://example.org/a/./b', 'segments'],
  ['with a segment of two dots', 'spiffe://example.org/../b', 'segments'],
  ['with a percent sign', 'spiffe://example.org/a%2fb', 'path segment holds only'],
  ['with a percent sign in the trust domain', 'spiffe://example%2eorg/a', 'trust domain holds only'],
  ['with a port', 'spiffe://example.org:443/a', 'trust domain holds only'],
  ['with user information', 'spiffe://root@example.org/a', 'trust domain holds only'],
  ['with a query', 'spiffe://example.org/a?b=c', 'path segment holds only'],
  ['with a fragment', 'spiffe://example.org/a#b', 'path segment holds only'],
  ['with an upper-case trust domain', 'spiffe://Example.org/a', 'trust domain holds only'],
  ['with an upper-case scheme', 'SPIFFE://example.org/a', 'begins with'],
  ['of another scheme', 'https://example.org/a', 'begins with'],
  ['that is not ASCII', 'spiffe://example.org/ä', 'path segment holds only'],
  ['that looks like ASCII', 'spiffe://example.org/\u0430dmin', 'path segment holds only'],
  ['with a NUL', 'spiffe://example.org/a\u0000b', 'path segment holds only'],
  ['without a path', 'spiffe://example.org', 'needs a path'],
  ['without a trust domain', 'spiffe:///a', 'cannot be empty'],
  ['that is empty', '', 'cannot be empty'],
  ["of a node's", 'spiffe://example.org/node/node-a', 'is kept'],
  ["of the server's", 'spiffe://example.org/countersign/server', 'is kept'],
];

describe('a SPIFFE ID', () => {
  test.each(ids)('%s: by the administrator', async (_, spiffeId, fault) => {
    const entry = { id: 'tried', spiffeId, node: 'node-b', selectors: ['unix:uid:1'] };
    if (fault === undefined) {
      expect(await server.putEntry(entry)).toMatchObject({ spiffeId });
      await until('the entry', () => b.entries().some((known) => known.spiffeId === spiffeId));
      const [issued] = await b.issue([{ entryId: 'tried', csr: createCsr(generateKey()) }]);
      expect(issued!.ok).toBe(true);
    } else {
      await expect(server.putEntry(entry)).rejects.toMatchObject({ code: 3, details: expect.stringContaining(fault) });
    }
  });

  test('past each limit, in the entries file: named, and nothing of the file is taken', async () => {
    const good = { id: 'file-good', spiffeId: 'spiffe://example.org/file-good', node: 'node-b' };
    for (const [what, spiffeId, fault] of ids) {
      server.logged.length = 0;
      server.writeEntries([...ENTRIES, good, { id: 'tried-file', spiffeId, node: 'node-b' }]);
      if (fault === undefined) {
        await until(what, () =>
          b.entries().some(({ id, ...known }) => id === 'tried-file' && known.spiffeId === spiffeId),
        );
        server.writeEntries(ENTRIES);
        await until('its end', () => !b.entries().some(({ id }) => id === 'tried-file'));
        continue;
      }
      const line = await until(what, () => server.logged.find((text) => text.includes('entries refused')));
      expect(line, what).toContain(fault);
      expect(line, what).toContain('entries[3]');
      expect(b.entries().some(({ id }) => id === 'file-good')).toBe(false);
    }
  });
});

test.each([
  ['a selector without a value', { selectors: ['unix:'] }, 'selectors'],
  ['no selector', { selectors: [] }, 'selectors'],
  ['a TTL past the limit', { ttlSeconds: 86_401 }, 'ttlSeconds'],
  ['a JWT TTL past the limit', { jwtTtlSeconds: 3601 }, 'jwtTtlSeconds'],
  ['a JWT TTL below the limit', { jwtTtlSeconds: 29 }, 'jwtTtlSeconds'],
  ['an upper-case DNS name', { dnsNames: ['A.example.org'] }, 'dnsNames'],
  ['the own trust domain among the federated', { federatesWith: ['example.org'] }, 'federatesWith'],
  ['a federated trust domain that is none', { federatesWith: ['spiffe://other.org'] }, 'federatesWith'],
  ['downstream', { downstream: 'yes' }, 'downstream: '],
  ['a node that is not configured', { node: 'node-z' }, 'node: node-z'],
  ['a field that there is not', { parentId: 'x' }, 'parentId'],
  ['an id that is none', { id: '../x' }, 'id'],
])('an entry with %s is refused by name', async (_, fields, fault) => {
  const entry = { id: 'tried', spiffeId: 'spiffe://example.org/tried', node: 'node-b', selectors: ['unix:uid:1'] };
  await expect(server.putEntry({ ...entry, ...fields })).rejects.toMatchObject({
    code: 3,
    details: expect.stringContaining(fault),
  });
});
