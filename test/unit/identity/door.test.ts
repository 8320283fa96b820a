import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type ConnectionOptions as TlsOptions, connect as tlsConnect } from 'node:tls';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type CertificateAuthority, openCertificateAuthority } from '../../../ca/api.ts';
import { Listener } from '../../../identity/listener.ts';
import { Signer } from '../../../identity/signer.ts';
import { Unproven } from '../../../identity/unproven.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { Svid } from '../../../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { quiet, TestServer, TRUST_DOMAIN, until } from './harness.ts';

const NODE_A = nodeSpiffeId(TRUST_DOMAIN, 'node-a' as NodeName);
let server: TestServer;

beforeAll(async () => {
  server = await TestServer.start();
  await server.joined('node-a');
});
afterAll(() => server[Symbol.asyncDispose]());

/** An authority of the tester's own. */
async function authority(trustDomain: TrustDomain, name: string): Promise<CertificateAuthority> {
  const ca = await openCertificateAuthority({ directory: join(server.dir, name), trustDomain, clock: server.clock });
  server.onClose(() => ca.close());
  return ca;
}

async function nodeSvid(ca: CertificateAuthority): Promise<Svid> {
  const privateKey = generateKey();
  const name = 'node-a' as NodeName;
  const issued = await ca.issueNodeSvid({ csr: createCsr(privateKey), name, incarnation: 1n, requester: 'test' });
  if (!issued.ok) throw new Error(issued.error);
  const { spiffeId: id, chain, notAfterMs } = issued.value;
  return { spiffeId: id, chain, privateKey, notAfterMs };
}

/** What an Issue call over a connection with this SVID comes to. */
async function issueAs(svid: Svid | undefined): Promise<unknown> {
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const connection = new Connection({ addresses: [server.address], bundle, svid, clock: server.clock });
  try {
    return await connection.unary('issue', { csrs: [] }, 5000);
  } finally {
    connection.close();
  }
}

const refusalsOf = (reason: string) =>
  server.auditLines().filter((line) => line.kind === 'peer.refused' && line.reason === reason).length;

test('without a certificate nothing but attestation is possible', async () => {
  await expect(issueAs(undefined)).rejects.toMatchObject({ code: 'unauthenticated', reason: 'CERT_CHAIN_EMPTY' });
});

test('a node certificate of another trust domain is refused, and its holder is told why', async () => {
  const foreign = await nodeSvid(await authority('elsewhere.org' as TrustDomain, 'foreign'));
  await expect(issueAs(foreign)).rejects.toMatchObject({ code: 'permission-denied', reason: 'CERT_TRUST_DOMAIN' });
  await until('the event', () => refusalsOf('CERT_TRUST_DOMAIN') > 0);
});

test('a node certificate of the right name by another authority is refused', async () => {
  const forged = await nodeSvid(await authority(TRUST_DOMAIN, 'forger'));
  expect(forged.spiffeId).toBe(NODE_A);
  await expect(issueAs(forged)).rejects.toMatchObject({ code: 'permission-denied', reason: 'CERT_UNTRUSTED' });
  await until('the event', () => refusalsOf('CERT_UNTRUSTED') > 0);
});

test("an authority's own certificate is nobody's", async () => {
  const privateKey = generateKey();
  const chain = server.bundle;
  // the key is not the certificate's: TLS itself refuses
  await expect(issueAs({ spiffeId: NODE_A, chain, privateKey, notAfterMs: Date.now() + 1e6 })).rejects.toThrow();
});

test("a workload's SVID is no node's, not even the server's own entries help", async () => {
  const client = await server.joined('node-b');
  const privateKey = generateKey();
  const [issued] = await client.issue([{ entryId: 'backend', csr: createCsr(privateKey) }]);
  if (!issued?.ok) throw new Error('no SVID');
  const id = spiffeId('spiffe://example.org/backend') as SpiffeId;
  const workload = { spiffeId: id, chain: issued.value, privateKey, notAfterMs: Date.now() + 1e6 };
  await expect(issueAs(workload)).rejects.toMatchObject({ code: 'permission-denied', reason: 'PEER_UNKNOWN_NODE' });
});

/** `once` of node:events would reject with the error of a connection that was reset. */
function closed(socket: Socket, event = 'close'): Promise<void> {
  return new Promise((resolve) => {
    socket.on('error', () => {});
    // a close is seen only by who reads to the end
    if (event === 'close') socket.resume();
    socket.once(event, () => resolve());
  });
}

/** How a raw TLS client fares: the protocol it got, or that it was sent away. */
async function tlsTo(options: TlsOptions): Promise<string> {
  const socket = tlsConnect({ host: '127.0.0.1', port: server.port, rejectUnauthorized: false, ...options });
  return new Promise((resolve) => {
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(`refused: ${error.code}`));
    socket.on('close', () => resolve('refused: closed'));
    // the server speaks first in HTTP/2 (its SETTINGS): only then is a client accepted
    socket.on('data', () => {
      resolve(socket.getProtocol() ?? 'none');
      socket.destroy();
    });
  });
}

test('TLS 1.2, another protocol than HTTP/2, and none at all are refused', async () => {
  expect(await tlsTo({ ALPNProtocols: ['h2'] })).toBe('TLSv1.3');
  expect(await tlsTo({ ALPNProtocols: ['h2'], maxVersion: 'TLSv1.2' })).toMatch(/^refused/);
  expect(await tlsTo({ ALPNProtocols: ['http/1.1'] })).toMatch(/^refused/);
  expect(await tlsTo({})).toMatch(/^refused/);
  expect(await tlsTo({ ALPNProtocols: ['h2'], ecdhCurve: 'P-256' })).toMatch(/^refused/);
});

test('a session is never resumed', async () => {
  const options = { host: '127.0.0.1', port: server.port, rejectUnauthorized: false, ALPNProtocols: ['h2'] };
  const first = tlsConnect(options);
  let session: Buffer | undefined;
  first.on('session', (ticket: Buffer) => {
    session = ticket;
  });
  await until('a ticket', () => session);
  first.destroy();
  const second = tlsConnect({ ...options, session: session! });
  await closed(second, 'secureConnect');
  expect(second.isSessionReused()).toBe(false);
  second.destroy();
});

test('garbage, silence and broken-off connections harm nobody', async () => {
  const noise = [
    Buffer.alloc(100_000, 0xff),
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    Buffer.from([0x16, 3, 1, 0xff, 0xff]),
  ];
  const sockets = noise.map((bytes) => {
    const socket = connect(server.port, '127.0.0.1', () => socket.write(bytes));
    socket.on('error', () => {});
    return socket;
  });
  const silent = Array.from({ length: 20 }, () => connect(server.port, '127.0.0.1').on('error', () => {}));
  for (const socket of silent.slice(10)) socket.destroy();
  await Promise.all(sockets.slice(0, 2).map((socket) => closed(socket)));
  // HTTP/2 frames that are none, behind a good handshake
  const inside = tlsConnect({ host: '127.0.0.1', port: server.port, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
  inside.on('error', () => {});
  await closed(inside, 'secureConnect');
  inside.write(Buffer.alloc(5000, 0x41));
  await closed(inside);
  const { connections } = (await server.list('getStatus')) as { connections: number };
  expect(connections).toBeGreaterThan(0);
  expect(await tlsTo({ ALPNProtocols: ['h2'] })).toBe('TLSv1.3');
  for (const socket of [...silent, ...sockets]) socket.destroy();
});

test('connections beyond the limit are closed at once, and there is room again when others leave', async () => {
  await using small = await TestServer.start({ limits: { connections: 3, handshakes: 3 } });
  const open = Array.from({ length: 3 }, () => connect(small.port, '127.0.0.1').on('error', () => {}));
  await Promise.all(open.map((socket) => closed(socket, 'connect')));
  const extra = connect(small.port, '127.0.0.1').on('error', () => {});
  await closed(extra);
  for (const socket of open) socket.destroy();
  await expect(small.joined('node-a')).resolves.toBeDefined();
});

/** A good handshake from this address, as another host's. */
function tlsFrom(localAddress: string, port: number): Socket {
  const socket = connect({ host: '127.0.0.1', port, localAddress });
  return tlsConnect({ socket, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
}

test('a host that opens connections up to a limit and says nothing keeps out nobody else', async () => {
  await using small = await TestServer.start({ limits: { connections: 100, handshakes: 4 } });
  const silent = Array.from({ length: 4 }, () => connect(small.port, '127.0.0.1').on('error', () => {}));
  await Promise.all(silent.map((socket) => closed(socket, 'connect')));
  // of the same host one more is refused
  await closed(connect(small.port, '127.0.0.1').on('error', () => {}));
  const gaveWay = closed(silent[0]!);
  const other = tlsFrom('127.0.0.2', small.port);
  await closed(other, 'secureConnect');
  await gaveWay;
  expect(other.destroyed).toBe(false);
  for (const socket of [...silent, other]) socket.destroy();
});

test('a host that takes all places without ever attesting keeps out nobody else', async () => {
  await using small = await TestServer.start({ limits: { connections: 4, handshakes: 10 } });
  const idle = Array.from({ length: 4 }, () => tlsFrom('127.0.0.1', small.port));
  await Promise.all(idle.map((socket) => closed(socket, 'secureConnect')));
  const status = async () => (await small.list('getStatus')) as { connections: number };
  await until('all of them', async () => (await status()).connections === 4);
  const other = tlsFrom('127.0.0.2', small.port);
  await Promise.race([closed(other, 'data'), closed(other)]);
  expect(other.destroyed).toBe(false);
  expect((await status()).connections).toBe(4);
  for (const socket of [...idle, other]) socket.destroy();
});

test('a node cannot take all places with its own certificate', async () => {
  await using other = await TestServer.start();
  const { chain, privateKey } = (await other.joined('node-b')).node.svid();
  const cert = chain.map((der) => encodePem('CERTIFICATE', der)).join('');
  const shown = { cert, key: privateKeyPem(privateKey), rejectUnauthorized: false, ALPNProtocols: ['h2'] };
  const many: Socket[] = [];
  for (let i = 0; i < 70; i++) {
    const socket = tlsConnect({ host: '127.0.0.1', port: other.port, ...shown });
    await Promise.race([closed(socket, 'data'), closed(socket)]);
    many.push(socket);
  }
  const { connections } = (await other.list('getStatus')) as { connections: number };
  expect(connections).toBe(64);
  expect(many.at(-1)?.destroyed).toBe(false);
  await until('the oldest to be gone', () => many.slice(0, 6).every((socket) => socket.destroyed));
  for (const socket of many) socket.destroy();
});

test('a crowd in which each comes from elsewhere keeps its places', () => {
  const places = new Unproven();
  const ended: string[] = [];
  for (const address of ['10.0.0.1', '10.0.0.2', 'fd00::1']) places.add(address, () => ended.push(address));
  expect(places.makeRoomFor('10.0.0.4')).toBe(false);
  // the same host, as far as anybody can tell
  places.add('fd00::2', () => ended.push('fd00::2'));
  expect(places.makeRoomFor('fd00::3')).toBe(false);
  expect(places.makeRoomFor('10.0.0.1')).toBe(false);
  expect(places.makeRoomFor('10.0.0.4')).toBe(true);
  expect(ended).toEqual(['fd00::1']);
});

test('who does not end the TLS handshake in time is sent away, and so is who never attests', async () => {
  const svid = await Signer.create(await authority(TRUST_DOMAIN, 'deadline'));
  const timers: { ms: number; fire: () => void }[] = [];
  const accepted: unknown[] = [];
  const listener = new Listener({
    address: '127.0.0.1',
    port: 0,
    limits: { connections: 10, handshakes: 10 },
    bundle: () => ({ trustDomain: TRUST_DOMAIN, authorities: server.bundle }),
    svid: () => svid.svid,
    clock: server.clock,
    timers: {
      set(ms, fire) {
        const timer = { ms, fire };
        timers.push(timer);
        return () => void timers.splice(timers.indexOf(timer), 1);
      },
    },
    log: quiet,
    audit: { emit: () => {} },
    accept: (socket) => accepted.push(socket),
  });
  const port = await listener.listen();
  const silent = connect(port, '127.0.0.1');
  await until('the deadline', () => timers.length === 1);
  expect(timers[0]?.ms).toBe(5000);
  const gone = closed(silent);
  timers[0]!.fire();
  await gone;

  const idle = tlsConnect({ host: '127.0.0.1', port, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
  const sentAway = closed(idle);
  await until('the handshake', () => accepted.length === 1);
  expect(timers.map((timer) => timer.ms)).toEqual([30_000]);
  timers[0]!.fire();
  await sentAway;
  await until('both to be forgotten', () => listener.connections === 0);
  listener.close();
});
