/** A process of its own that opens connections to a peer channel's port as fast as it can, from one address or from many. */
import { type Socket, connect as tcpConnect } from 'node:net';
import { connect as tlsConnect } from 'node:tls';

/**
 * @param kind tcp: connects and is silent; tls: ends the handshake, as nobody
 * @param sources 1: all from 127.0.0.1, where nodes live in these tests; else each from one of so many addresses of nobody
 */
async function flood(port: number, kind: string, count: number, sources: number): Promise<void> {
  let begun = 0;
  let ended = 0;
  let handshakes = 0;
  const one = () =>
    new Promise<void>((resolve) => {
      const n = begun++;
      const source = n % sources;
      const localAddress =
        sources === 1 ? '127.0.0.1' : `127.${1 + (source >> 16)}.${(source >> 8) & 255}.${source & 255}`;
      const target = { host: '127.0.0.1', port, localAddress };
      let socket: Socket;
      if (kind === 'tcp') socket = tcpConnect(target);
      else {
        socket = tlsConnect({
          ...target,
          ...{ rejectUnauthorized: false, ecdhCurve: 'X25519MLKEM768', ALPNProtocols: ['countersign/1'] },
        }).on('secureConnect', () => {
          handshakes += 1;
        });
      }
      socket.on('error', () => {});
      const timer = setTimeout(() => socket.destroy(), 1_000);
      socket.on('close', () => {
        clearTimeout(timer);
        ended += 1;
        resolve();
      });
      socket.resume();
    });
  const workers = Array.from({ length: 400 }, async () => {
    while (begun < count) await one();
  });
  await Promise.all(workers);
  process.send?.({ ended, handshakes });
  process.disconnect?.();
}

const [port, kind, count, sources] = process.argv.slice(2);
await flood(Number(port), kind!, Number(count), Number(sources));
