/** A peer that says what it likes: plain TCP or TLS from the test, without the production code's manners. */
import { once } from 'node:events';
import { type Socket, connect as tcpConnect } from 'node:net';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import { Close, FrameType, Hello } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { NodeInfo, Svid } from '../../../src/model/identity.ts';
import { encodePem } from '../../../src/pki/pem.ts';

export interface Received {
  readonly type: number;
  readonly body: Buffer;
}

export class RawPeer<T extends Socket = Socket> {
  readonly socket: T;
  readonly #chunks: Buffer[] = [];
  closed = false;
  error: NodeJS.ErrnoException | undefined;

  constructor(socket: T) {
    this.socket = socket;
    socket.on('data', (chunk) => this.#chunks.push(chunk as Buffer));
    socket.on('error', (error) => {
      this.error = error;
    });
    socket.on('close', () => {
      this.closed = true;
    });
  }

  /** Application data that has come so far. */
  get octets(): number {
    return this.#chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  }

  /** What has come so far. */
  frames(): Received[] {
    const bytes = Buffer.concat(this.#chunks);
    const frames: Received[] = [];
    for (let at = 0; at + 4 < bytes.length; ) {
      const length = bytes.readUInt32BE(at);
      frames.push({ type: bytes[at + 4]!, body: bytes.subarray(at + 5, at + 4 + length) });
      at += 4 + length;
    }
    return frames;
  }

  /** The reason of the last Close frame. */
  farewell(): string | undefined {
    const last = this.frames().findLast(({ type }) => type === FrameType.FRAME_TYPE_CLOSE);
    return last === undefined ? undefined : Close.decode(last.body).reason;
  }

  frame(type: number, body: Uint8Array = Buffer.alloc(0)): void {
    const header = Buffer.alloc(5);
    header.writeUInt32BE(1 + body.length, 0);
    header[4] = type;
    this.socket.write(Buffer.concat([header, body]));
  }

  hello(info: NodeInfo, change: Partial<Hello> = {}): void {
    const hello = {
      ...{ minVersion: 2, maxVersion: 2, features: [], nodeName: info.name, nodeId: info.id },
      ...{ incarnation: info.incarnation, succeeds: Buffer.alloc(0) },
    };
    this.frame(FrameType.FRAME_TYPE_HELLO, Hello.encode({ ...hello, ...change }).finish());
  }
}

export function rawTcp(port: number): RawPeer {
  return new RawPeer(tcpConnect(port, '127.0.0.1'));
}

/** TLS as a well-behaved node would have it, but for what `change` says. */
export function rawTls(port: number, svid: Svid | undefined, change: ConnectionOptions = {}): RawPeer<TLSSocket> {
  const credentials = svid === undefined ? {} : credentialsOf(svid);
  return new RawPeer(
    connect({
      ...{ host: '127.0.0.1', port, rejectUnauthorized: false, ca: [], ...credentials },
      ...{ minVersion: 'TLSv1.3', ecdhCurve: 'X25519MLKEM768', ALPNProtocols: ['countersign/1'] },
      ...change,
    }),
  );
}

/** Connected, and the hello of the other side has come. */
export async function greetedTls(port: number, svid: Svid): Promise<RawPeer<TLSSocket>> {
  const peer = rawTls(port, svid);
  await once(peer.socket, 'secureConnect');
  while (peer.frames().length === 0) await once(peer.socket, 'data');
  return peer;
}

export function credentialsOf(svid: Svid): { key: string; cert: string } {
  return {
    key: svid.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    cert: svid.chain.map((der) => encodePem('CERTIFICATE', der)).join(''),
  };
}
