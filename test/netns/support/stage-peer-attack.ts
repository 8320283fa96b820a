// Everything a peer must not do, at once, against one agent's peer port. Arguments: host, port, the identity file of a
// node of the cluster (as its agent keeps it), another node's. Prints {attack: ms until the other side closed, or null}.
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { encodePem } from '../../../src/pki/pem.ts';

const [host = '', portText = '', identityFile = '', otherFile = ''] = process.argv.slice(2);
const port = Number(portText);
const GIVE_UP_MS = 12_000;

interface Identity {
  readonly privateKey: string;
  readonly chain: readonly string[];
}
const readIdentity = (file: string) => JSON.parse(readFileSync(file, 'utf8')) as Identity;
const pem = (ders: readonly string[]) =>
  ders.map((der) => encodePem('CERTIFICATE', Buffer.from(der, 'base64'))).join('');
const node = readIdentity(identityFile);
const other = readIdentity(otherFile);
const [leaf = '', ...authorities] = node.chain;
const [otherLeaf = ''] = other.chain;

const plain = (said?: Buffer) => () => {
  const socket = connect({ host, port }, () => {
    if (said !== undefined) socket.write(said);
  });
  return socket;
};
const tls = (credentials: { cert?: string; key?: string }, said?: Buffer) => () => {
  const ALPNProtocols = ['countersign/1'];
  const socket = connectTls({ host, port, ALPNProtocols, rejectUnauthorized: false, ...credentials }, () => {
    if (said !== undefined) socket.write(said);
  });
  return socket;
};
const genuine = { cert: pem(node.chain), key: node.privateKey };
const oversized = Buffer.alloc(5);
oversized.writeUInt32BE(64 * 1024 + 1);

const attacks: Record<string, () => Socket> = {
  silent: plain(),
  garbage: plain(randomBytes(512)),
  http: plain(Buffer.from('GET / HTTP/1.1\r\nhost: peer\r\n\r\n')),
  noCertificate: tls({}),
  silentAfterTls: tls(genuine),
  oversizedFrame: tls(genuine, oversized),
  malformedHello: tls(genuine, Buffer.concat([Buffer.from([0, 0, 0, 9, 1]), Buffer.alloc(8, 0xff)])),
  secondLeaf: tls({ cert: pem([leaf, otherLeaf, ...authorities]), key: node.privateKey }),
  wrongAlpn: () => connectTls({ host, port, ALPNProtocols: ['h2'], rejectUnauthorized: false, ...genuine }),
};

async function closedAfter(open: () => Socket): Promise<number | null> {
  const started = performance.now();
  const socket = open();
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      socket.destroy();
      resolve(null);
    }, GIVE_UP_MS);
    socket.on('error', () => {});
    socket.on('data', () => {});
    socket.once('close', () => {
      clearTimeout(timer);
      resolve(Math.round(performance.now() - started));
    });
  });
}

const names = Object.keys(attacks);
const times = await Promise.all(names.map((name) => closedAfter(attacks[name]!)));
console.log(JSON.stringify(Object.fromEntries(names.map((name, i) => [name, times[i]]))));
