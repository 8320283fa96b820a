import { readFileSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import { afterEach, expect, test } from 'vitest';
import { WorkloadSvids } from '../../../src/agent/server-client/svids.ts';
import type { Svid } from '../../../src/model/identity.ts';
import type { SecurityIdentity } from '../../../src/model/ids.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { collector, ENTRIES, quiet, TestServer, until } from '../identity/harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

const serialOf = (svid: Svid | undefined) => {
  const leaf = svid === undefined ? undefined : parseCertificate(svid.chain[0]!);
  return leaf?.ok ? leaf.value.serial : undefined;
};

test('a restart needs no token and keeps id and incarnation', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  const info = first.node.info;
  await first.close();
  const again = await server.client('node-a');
  expect(again.node.info).toEqual(info);
  expect(again.node.svid().chain).toEqual(first.node.svid().chain);
});

test('without state and without a token the message says how to get one', async () => {
  server = await TestServer.start();
  await expect(server.client('node-a')).rejects.toThrow(/countersign token create --node node-a/);
});

test('an expired node SVID is of no use: the node joins again', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  await first.close();
  server.clock.offsetMs += 2 * 3_600_000;
  await expect(server.client('node-a')).rejects.toMatchObject({ code: 'unauthenticated' });
  const again = await server.joined('node-a');
  expect(again.node.info.incarnation).toBe(2n);
});

test('a node SVID that ends while the server is away ends the process: nobody takes it for the node any more', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const barred: string[] = [];
  client.onBarred((reason) => barred.push(reason));
  await server.down();
  await until('the loss', () => !client.status().connected);
  expect(barred).toEqual([]);
  server.clock.offsetMs += 2 * 3_600_000;
  await until('the end', () => barred.length > 0);
  expect(barred).toEqual(['CERT_EXPIRED']);
});

test('a node that is evicted ends, and its next start attests anew', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const barred: string[] = [];
  client.onBarred((reason) => barred.push(reason));
  await server.revoke({ $case: 'node', value: 'node-a' }, 10);
  await until('the end', () => barred.length > 0);
  expect(barred).toEqual(['ATTEST_NODE_EVICTED']);
  await client.close();
  await expect(server.client('node-a')).rejects.toThrow(/countersign token create --node node-a/);
  // a revocation covers what is issued within its second
  server.clock.offsetMs += 2_000;
  expect((await server.joined('node-a')).node.info.incarnation).toBe(2n);
});

test('a damaged state file is named, not guessed at', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  await first.close();
  const path = join(server.dir, 'node-a/node-identity.json');
  writeFileSync(path, readFileSync(path, 'utf8').slice(0, 300));
  await expect(server.client('node-a')).rejects.toThrow(/node-identity\.json: damaged/);
});

test('a state of another trust bundle than the one handed out is not used', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  await first.close();
  await using other = await TestServer.start();
  // same address, other authority: the agent must not speak to it with what it holds, nor take it for the server
  const moved = { addresses: [other.address], bundle: other.bundle, stateDir: join(server.dir, 'node-a') };
  await expect(server.client('node-a', moved)).rejects.toThrow(/no join token/);
  const impostor = { addresses: [other.address], stateDir: join(server.dir, 'node-a') };
  await expect(server.client('node-a', impostor)).rejects.toMatchObject({ reason: 'CERT_UNTRUSTED' });
});

test('a node of the trust domain that poses as the server is refused', async () => {
  server = await TestServer.start();
  const b = await server.joined('node-b');
  const { chain, privateKey } = b.node.svid();
  const impostor = createTlsServer({
    key: privateKeyPem(privateKey),
    cert: chain.map((der) => encodePem('CERTIFICATE', der)).join(''),
    ecdhCurve: 'X25519MLKEM768',
    ALPNProtocols: ['h2'],
  });
  let received = 0;
  impostor.on('secureConnection', (socket) => {
    socket.on('error', () => {});
    socket.on('data', (bytes: Buffer) => {
      received += bytes.length;
    });
  });
  await new Promise<void>((resolve) => impostor.listen(0, '127.0.0.1', resolve));
  server.onClose(() => impostor.close());
  const address = `127.0.0.1:${(impostor.address() as AddressInfo).port}`;
  const joining = server.client('node-a', { addresses: [address], joinToken: async () => 'the token' });
  await expect(joining).rejects.toMatchObject({ code: 'unauthenticated', reason: 'AUTH_WRONG_SPIFFE_ID' });
  // not a byte of the token, nor of anything else
  expect(received).toBe(0);
});

test('as long as nobody listens nothing is said to be in force', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const revoked = server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/backend' }, 200);
  expect(await revoked).toMatchObject({ inForce: [], missing: ['node-a'] });
  client.onChange(() => {});
  await until('the word', () => client.status().inForceVersion === client.status().version);
});

test('a start waits for a server that is not there yet, until it is told to stop', async () => {
  server = await TestServer.start();
  const token = await server.token('node-a');
  const options = server.clientOptions('node-a', { joinToken: async () => token });
  await server.down();
  await expect(server.client('node-a', { ...options, signal: AbortSignal.timeout(200) })).rejects.toThrow();
  const joining = server.client('node-a', options);
  await until('a try', () => server.logged.length > 0);
  await server.up();
  expect((await joining).status().connected).toBe(true);
});

test('the node SVID is renewed before it ends, and the stream goes on under the new one', async () => {
  server = await TestServer.start({ ca: { nodeTtl: '60s' } });
  const client = await server.joined('node-a');
  const before = serialOf(client.node.svid());
  await client.close();
  // at 40 s of 60 the renewal is due at once
  server.clock.offsetMs += 40_000;
  const again = await server.client('node-a');
  let told = 0;
  again.onNodeSvid(() => {
    told += 1;
  });
  await until('the renewal', () => serialOf(again.node.svid()) !== before);
  expect(told).toBe(1);
  expect(again.node.info.incarnation).toBe(1n);
  await until('the new stream', () => again.status().connected);
  await again.close();
  const restarted = await server.client('node-a');
  expect(serialOf(restarted.node.svid())).not.toBe(before);
});

test('a listener that fails keeps the version from being acked, and is told again', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  let failures = 0;
  const told: number[] = [];
  client.onChange((change) => {
    told.push(change.revocations.length);
    if (change.revocations.length > 0 && failures++ === 0) throw new Error('the kernel said no');
  });
  const reply = await server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/frontend' });
  expect(failures).toBe(2);
  expect(reply).toMatchObject({ inForce: ['node-a'], missing: [] });
});

async function withSvids() {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const audit = collector();
  const svids = new WorkloadSvids({ client, clock: server.clock, log: quiet, audit });
  server.onClose(() => svids.close());
  return { client, svids, audit };
}
const FRONTEND = 256 as SecurityIdentity;
const BACKEND = 257 as SecurityIdentity;

test('every entry of the node gets an SVID with a key of its own, others do not', async () => {
  const { svids, audit } = await withSvids();
  server.writeEntries([...ENTRIES, { id: 'second', spiffeId: 'spiffe://example.org/second', node: 'node-a' }]);
  const second = await until('the second', () => svids.snapshot().svidOf('second'));
  const first = svids.snapshot().svidOf('frontend')!;
  expect(publicKeyDer(first.privateKey)).not.toEqual(publicKeyDer(second.privateKey));
  expect(svids.svidOf(FRONTEND)).toEqual({ ok: true, value: first });
  expect(svids.svidOf(BACKEND)).toEqual({ ok: false, error: 'AUTH_NO_SVID' });
  expect(svids.snapshot().bundles[0]?.authorities).toEqual(server.bundle);
  expect(audit.events.filter((e) => e.kind === 'svid.received')).toHaveLength(2);
});

test('a revoked SVID is gone before the revocation is acked, and no other comes', async () => {
  const { svids } = await withSvids();
  await until('the SVID', () => svids.snapshot().svidOf('frontend'));
  await server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/frontend' });
  expect(svids.svidOf(FRONTEND)).toEqual({ ok: false, error: 'AUTH_REVOKED' });
  await until('the refusal', () => server.auditLines().some((l) => l.reason === 'ISSUE_REVOKED'));
  expect(svids.svidOf(FRONTEND)).toEqual({ ok: false, error: 'AUTH_REVOKED' });
});

test('an SVID revoked by its serial number is replaced by another', async () => {
  const { svids } = await withSvids();
  const before = serialOf(await until('the SVID', () => svids.snapshot().svidOf('frontend')))!;
  await server.revoke({ $case: 'serial', value: before });
  const after = await until('another', () => svids.snapshot().svidOf('frontend'));
  expect(serialOf(after)).not.toBe(before);
});

test('an entry that goes takes its SVID along, and subscribers are told', async () => {
  const { svids } = await withSvids();
  await until('the SVID', () => svids.snapshot().svidOf('frontend'));
  let told = 0;
  svids.subscribe(() => {
    told += 1;
  });
  server.writeEntries(ENTRIES.slice(1));
  await until('it to go', () => told > 0 && svids.snapshot().svidOf('frontend') === undefined);
  expect(svids.svidOf(FRONTEND).ok).toBe(false);
});

test('an SVID that has ended is not handed out', async () => {
  const { svids } = await withSvids();
  await until('the SVID', () => svids.snapshot().svidOf('frontend'));
  server.clock.offsetMs += 2 * 3_600_000;
  expect(svids.svidOf(FRONTEND)).toEqual({ ok: false, error: 'AUTH_NO_SVID' });
  expect(svids.snapshot().svidOf('frontend')).toBeUndefined();
});
