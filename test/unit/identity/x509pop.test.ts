import { execFileSync } from 'node:child_process';
import { createPrivateKey, type KeyObject } from 'node:crypto';
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { serverConfigSchema } from '../../../identity/config.ts';
import { nameIn, verifyChain } from '../../../identity/x509pop.ts';
import { AttestRequest, type AttestResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import { attest } from '../../../src/agent/server-client/attest.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { nodeSpiffeId } from '../../../src/model/spiffe-id.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import { decodePem, encodePem } from '../../../src/pki/pem.ts';
import { answerChallenge, encodePayload } from '../../../src/pki/x509pop.ts';
import { INTERMEDIATE, OpensslCas } from '../ca/openssl-ca.ts';
import * as forge from '../pki/support/forge.ts';
import { TestServer, TRUST_DOMAIN } from './harness.ts';

const HOUR = 3_600_000;
const lives = () => ({ notBeforeMs: Date.now() - HOUR, notAfterMs: Date.now() + HOUR });
const authority = forge.ca({ ...lives(), uris: [] });
const intermediate = forge.ca({ ...lives(), issuer: authority, subject: forge.name('Intermediate'), uris: [] });
const other = forge.ca({ ...lives(), uris: [] });
const certificate = (options: forge.ForgeOptions = {}, issuer = authority) =>
  forge.leaf(issuer, {
    ...lives(),
    subject: forge.name('node-a'),
    uris: [],
    extKeyUsage: [OID.clientAuth],
    ...options,
  });

let server: TestServer;
beforeAll(async () => {
  server = new TestServer();
  server.writeEntries([]);
  const caFile = join(server.dir, 'machines.pem');
  writeFileSync(caFile, encodePem('CERTIFICATE', authority.der));
  server.overrides = { attestors: { x509pop: { caFile } } };
  await server.up();
});
afterAll(() => server[Symbol.asyncDispose]());

let names = 0;
beforeEach(() => {
  names += 1;
});

/** Joins as an agent does. */
function joinWith(chain: readonly Buffer[], privateKey: KeyObject, nodeName = 'node-a') {
  const x509pop = async () => ({ chain, privateKey });
  return server.client(nodeName, { x509pop, stateName: `state-${names}-${Math.random()}` });
}

/** An attestation as somebody who is no agent of ours may do it. */
async function attestRaw(
  payload: Buffer,
  answer: (challenge: Buffer, csr: Buffer) => Buffer,
  csr = createCsr(generateKey()),
): Promise<string> {
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const connection = new Connection({ addresses: [server.address], bundle, svid: undefined, clock: server.clock });
  try {
    const stream = connection.rpc.attest();
    const params = { attestor: 'x509pop', payload, nodeName: 'node-a', csr, peerAddresses: [] };
    stream.write(AttestRequest.create({ step: { $case: 'params', value: params } }));
    return await new Promise((resolve) => {
      stream.on('data', ({ step }: AttestResponse) => {
        if (step?.$case === 'result') return resolve('admitted');
        const value = answer(step!.value as Buffer, csr);
        stream.write(AttestRequest.create({ step: { $case: 'challengeResponse', value } }));
      });
      stream.on('error', (error: { details: string }) => resolve(error.details.split(':')[0]!));
    });
  } finally {
    connection.close();
  }
}

const node = nodeSpiffeId(TRUST_DOMAIN, 'node-a' as NodeName);

test.each([
  ['P-256', generateKey()],
  ['P-384', forge.keyOf('P-384')],
  ['RSA 2048', forge.rsaKey(2048)],
])(
  'a node joins with a certificate of its operator, by a key of %s, and again when it lost what it knew',
  async (_, key) => {
    const { der } = certificate({ key });
    const first = await joinWith([der], key);
    const { incarnation } = first.node.info;
    await first.close();
    const again = await joinWith([der], key);
    expect(again.node.info).toMatchObject({ name: 'node-a', incarnation: incarnation + 1n });
    await again.close();
    const { nodes } = await server.list('listNodes');
    expect(nodes).toContainEqual(expect.objectContaining({ name: 'node-a', attestor: 'x509pop' }));
  },
);

test('what is between the certificate and the authority comes with it', async () => {
  const { der, key } = certificate({}, intermediate);
  await (await joinWith([der, intermediate.der], key)).close();
  await expect(joinWith([der], key)).rejects.toMatchObject({ reason: 'CERT_UNTRUSTED' });
});

test('a certificate lets in the node that it names and no other', async () => {
  const { der, key } = certificate();
  await expect(joinWith([der], key, 'node-b')).rejects.toMatchObject({
    code: 'unauthenticated',
    reason: 'ATTEST_PROOF_INVALID',
  });
});

test('a certificate without its key lets nobody in', async () => {
  const { der } = certificate();
  await expect(joinWith([der], generateKey())).rejects.toMatchObject({ reason: 'ATTEST_PROOF_INVALID' });
});

test.each<[string, forge.Forged, string]>([
  ['of another authority of the same name', certificate({}, other), 'CERT_UNTRUSTED'],
  ['signed by itself', certificate({ issuer: undefined as never }), 'CERT_UNTRUSTED'],
  ['that has ended', certificate({ notAfterMs: Date.now() - 1000 }), 'CERT_EXPIRED'],
  ['not valid yet', certificate({ notBeforeMs: Date.now() + HOUR / 2 }), 'CERT_NOT_YET_VALID'],
  ["of an authority, the intermediate's", intermediate, 'CERT_LEAF_IS_CA'],
  ['for signing nothing', certificate({ keyUsage: [forge.KU.keyEncipherment] }), 'CERT_KEY_USAGE'],
  ['for servers only', certificate({ extKeyUsage: [OID.serverAuth] }), 'CERT_EXT_KEY_USAGE'],
  [
    'with a critical extension that nobody knows',
    certificate({ more: [forge.extension('1.2.3.4', Buffer.from([5, 0]), true)] }),
    'CERT_CRITICAL_EXTENSION',
  ],
  ['of a weak key', certificate({ key: forge.rsaKey(1024) }), 'CERT_WEAK_KEY'],
  [
    'whose signature is another one',
    certificate({ signature: (right) => Buffer.concat([right.subarray(0, -1), Buffer.of(right.at(-1)! ^ 1)]) }),
    'CERT_UNTRUSTED',
  ],
  ['of two names', certificate({ subject: Buffer.from(twoNames()) }), 'ATTEST_PROOF_INVALID'],
])('a certificate %s is refused', async (_, { der, key }, reason) => {
  await expect(joinWith([der], key)).rejects.toMatchObject({ reason });
});

/** CN=node-a and CN=node-b in one subject. */
function twoNames(): Buffer {
  const [a, b] = [forge.name('node-a'), forge.name('node-b')];
  return Buffer.concat([Buffer.of(0x30, a!.length - 2 + b!.length - 2), a!.subarray(2), b!.subarray(2)]);
}

test('an intermediate that may not sign, or not so far down, is refused', () => {
  const nowMs = Date.now();
  const anchors = [authority].map(({ der }) => {
    const parsed = parseCertificate(der);
    if (!parsed.ok) throw new Error(parsed.error);
    return parsed.value;
  });
  const signer = (options: forge.ForgeOptions) =>
    forge.ca({ ...lives(), issuer: authority, subject: forge.name('Signer'), uris: [], ...options });
  const outcome = (chain: forge.Forged[]) => {
    const result = verifyChain(
      chain.map(({ der }) => der),
      anchors,
      nowMs,
    );
    return result.ok ? 'ok' : result.error;
  };
  const good = signer({});
  expect(outcome([certificate({}, good), good])).toBe('ok');
  const noCa = signer({ ca: { isCa: false } });
  expect(outcome([certificate({}, noCa), noCa])).toBe('CERT_UNTRUSTED');
  const noSign = signer({ keyUsage: [forge.KU.digitalSignature] });
  expect(outcome([certificate({}, noSign), noSign])).toBe('CERT_UNTRUSTED');
  const ended = signer({ notAfterMs: nowMs - 1000 });
  expect(outcome([certificate({}, ended), ended])).toBe('CERT_UNTRUSTED');
  const short = signer({ ca: { isCa: true, pathLength: 0 } });
  expect(outcome([certificate({}, short), short])).toBe('ok');
  const below = forge.ca({ ...lives(), issuer: short, subject: forge.name('Below'), uris: [] });
  expect(outcome([certificate({}, below), below, short])).toBe('CERT_UNTRUSTED');
  const constrained = signer({ more: [forge.extension('2.5.29.30', Buffer.from([0x30, 0]), true)] });
  expect(outcome([certificate({}, constrained), constrained])).toBe('CERT_UNTRUSTED');
});

test('the name is the configured one of the certificate', () => {
  const parsed = (forged: forge.Forged) => {
    const result = parseCertificate(forged.der);
    if (!result.ok) throw new Error(result.error);
    return result.value;
  };
  const both = parsed(
    certificate({ subject: forge.name('by-name'), otherNames: [forge.dns('by-dns.machines.example.org')] }),
  );
  const domain = 'machines.example.org';
  expect(nameIn(both, { nodeName: 'common-name' })).toBe('by-name');
  expect(nameIn(both, { nodeName: 'dns-name' })).toBe('by-dns.machines.example.org');
  expect(nameIn(both, { nodeName: 'dns-name', domain })).toBe('by-dns');
  expect(nameIn(both, { nodeName: 'dns-name', domain: 'example.com' })).toBeUndefined();
  expect(nameIn(both, { nodeName: 'common-name', domain })).toBeUndefined();
  const two = parsed(certificate({ otherNames: [forge.dns('a.example.org'), forge.dns('b.example.org')] }));
  expect(nameIn(two, { nodeName: 'dns-name' })).toBeUndefined();
  const none = parsed(certificate({ subject: forge.EMPTY_NAME, otherNames: [forge.dns('a')] }));
  expect(nameIn(none, { nodeName: 'common-name' })).toBeUndefined();
});

test('an answer is good for one challenge, one request and one node', async () => {
  const { der, key } = certificate();
  const payload = encodePayload([der]);
  let answered = Buffer.alloc(0);
  const right = (challenge: Buffer, csr: Buffer) => answerChallenge(challenge, { node, csr }, key)!;
  const first = createCsr(generateKey());
  const answering = (challenge: Buffer, csr: Buffer) => {
    answered = Buffer.from(right(challenge, csr));
    return answered;
  };
  expect(await attestRaw(payload, answering, first)).toBe('admitted');
  // what was heard on the way, word for word
  expect(await attestRaw(payload, () => answered, first)).toBe('ATTEST_PROOF_INVALID');
  // another's request under the node's answer
  const mine = createCsr(generateKey());
  expect(await attestRaw(payload, (challenge) => right(challenge, createCsr(generateKey())), mine)).toBe(
    'ATTEST_PROOF_INVALID',
  );
  const ofOther = nodeSpiffeId(TRUST_DOMAIN, 'node-b' as NodeName);
  expect(await attestRaw(payload, (challenge, csr) => answerChallenge(challenge, { node: ofOther, csr }, key)!)).toBe(
    'ATTEST_PROOF_INVALID',
  );
  for (const nonsense of [Buffer.alloc(0), Buffer.alloc(32), Buffer.alloc(40), Buffer.alloc(100_000)]) {
    expect(await attestRaw(payload, () => nonsense)).toBe('ATTEST_PROOF_INVALID');
  }
});

test('a certificate made by openssl lets its node in, as soon as its authority is in the file', async () => {
  const openssl = new OpensslCas(server.dir);
  const root = openssl.make('fleet', { key: 'rsa3072' });
  const issuer = openssl.make('fleet-issuer', { issuer: root, extensions: INTERMEDIATE });
  const keyFile = openssl.key('node-b', 'p384');
  const csr = execFileSync('openssl', ['req', '-new', '-key', keyFile, '-subj', '/O=Fleet/CN=node-b']).toString();
  const extensions = 'keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n';
  const leaf = openssl.sign(issuer, { csr, seconds: 3600, extensions, subject: '/O=Fleet/CN=node-b' });
  const chain = [leaf, issuer.certificate].flatMap((text) => decodePem(text, 'CERTIFICATE'));
  const key = createPrivateKey(readFileSync(keyFile));
  await expect(joinWith(chain, key, 'node-b')).rejects.toMatchObject({ reason: 'CERT_UNTRUSTED' });
  appendFileSync(join(server.dir, 'machines.pem'), root.certificate);
  const client = await joinWith(chain, key, 'node-b');
  expect(client.node.info.name).toBe('node-b');
  await client.close();
});

test('a payload that is none is refused', async () => {
  const payloads = [
    '',
    'null',
    '{}',
    '{"certificates":[]}',
    '{"certificates":["%%%"]}',
    JSON.stringify({ certificates: Array(6).fill(certificate().der.toString('base64')) }),
    JSON.stringify({ certificates: ['A'.repeat(100_000)] }),
    JSON.stringify({ certificates: ['MAA='], more: 1 }),
  ];
  for (const payload of payloads) {
    expect(await attestRaw(Buffer.from(payload), () => Buffer.alloc(0))).toMatch(/^(ATTEST_PROOF_INVALID)$/);
  }
  expect(await attestRaw(Buffer.from('{"certificates":["MAA="]}'), () => Buffer.alloc(0))).toBe('CERT_MALFORMED');
});

test('where once is all it may, a node attests again only after it was evicted', async () => {
  const caFile = join(server.dir, 'machines.pem');
  await using strict = await TestServer.start({ attestors: { x509pop: { caFile, reattest: 'never' } } });
  const { der, key } = certificate();
  const join_ = () =>
    attest({
      addresses: [strict.address],
      bundle: { trustDomain: TRUST_DOMAIN, authorities: strict.bundle },
      nodeName: 'node-a' as NodeName,
      spiffeId: node,
      proof: { type: 'x509pop', chain: [der], privateKey: key },
      peerAddresses: [],
      clock: strict.clock,
      life: undefined as never,
    });
  await join_();
  strict.clock.offsetMs = 11_000;
  await expect(join_()).rejects.toMatchObject({ code: 'already-exists', reason: 'ATTEST_ONCE_ONLY' });
  await strict.nodeAction('evictNode', 'node-a');
  await expect(join_()).resolves.toMatchObject({ incarnation: 2n });
});

test('where no authority is configured the attestor is not there, and one that is not built is named', async () => {
  await using plain = await TestServer.start();
  const { der, key } = certificate();
  const x509pop = async () => ({ chain: [der], privateKey: key });
  await expect(plain.client('node-a', { x509pop })).rejects.toMatchObject({ reason: 'ATTEST_UNSUPPORTED' });
  const parsed = serverConfigSchema.safeParse({ ...plain.config(), attestors: { k8s_psat: {} } });
  expect(JSON.stringify(parsed.error?.issues)).toContain('is not supported yet; use join_token or x509pop');
});
