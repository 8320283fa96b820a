/** WireGuard's cross-platform configuration protocol (https://www.wireguard.com/xplatform/): text over a unix socket. */
import { connect, type Socket } from 'node:net';
import { CountersignError } from '../base/errors.ts';
import { parseAddress } from '../model/address.ts';
import type { IpAddress } from '../model/ids.ts';
import type { PeerState } from './device.ts';
import { type DeviceChange, type DeviceState, formatEndpoint, hostPrefixLength, KEY_LENGTH } from './device.ts';

/** A device with 10,000 peers of 100 addresses is below this. */
const MAX_ANSWER_LENGTH = 64 << 20;
const REQUEST_DEADLINE_MS = 10_000;

export function encodeSet(change: DeviceChange): string {
  let text = 'set=1\n';
  if (change.privateKey !== undefined) text += `private_key=${change.privateKey.toString('hex')}\n`;
  if (change.listenPort !== undefined) text += `listen_port=${change.listenPort}\n`;
  if (change.fwmark !== undefined) text += `fwmark=${change.fwmark}\n`;
  for (const peer of change.peers ?? []) {
    text += `public_key=${peer.publicKey.toString('hex')}\n`;
    if (peer.remove === true) {
      text += 'remove=true\n';
      continue;
    }
    if (peer.presharedKey !== undefined) text += `preshared_key=${peer.presharedKey.toString('hex')}\n`;
    if (peer.endpoint !== undefined) text += `endpoint=${formatEndpoint(peer.endpoint)}\n`;
    if (peer.keepalive !== undefined) text += `persistent_keepalive_interval=${peer.keepalive}\n`;
    for (const address of peer.addresses ?? []) text += `allowed_ip=${address}/${hostPrefixLength(address)}\n`;
  }
  return `${text}\n`;
}

export const GET = 'get=1\n\n';

/** The errno at the end of an answer; undefined if it is no answer. */
export function errnoOf(answer: string): number | undefined {
  const match = /(?:^|\n)errno=(-?\d{1,5})\n\n$/.exec(answer);
  return match === null ? undefined : Number(match[1]);
}

/** Secrets in the answer are passed over, and unknown keys too: newer versions add some. @throws RangeError if malformed */
export function decodeGet(answer: string, publicKeyOf: (privateKey: Buffer) => Buffer): DeviceState {
  let publicKey: Buffer | undefined;
  let listenPort = 0;
  const peers: { -readonly [K in keyof PeerState]: PeerState[K] }[] = [];
  for (const line of answer.split('\n')) {
    if (line === '') continue;
    const split = line.indexOf('=');
    if (split < 0) throw new RangeError('a line of the UAPI answer is not key=value');
    const value = line.slice(split + 1);
    const peer = peers.at(-1);
    switch (line.slice(0, split)) {
      case 'private_key':
        publicKey = publicKeyOf(keyOf(value));
        break;
      case 'listen_port':
        listenPort = Number(value);
        break;
      case 'public_key':
        peers.push({
          publicKey: keyOf(value),
          endpoint: '',
          addresses: [],
          lastHandshake: 0,
          rxBytes: 0n,
          txBytes: 0n,
        });
        break;
      case 'endpoint':
        if (peer !== undefined) peer.endpoint = value;
        break;
      case 'last_handshake_time_sec':
        if (peer !== undefined) peer.lastHandshake = Number(value);
        break;
      case 'rx_bytes':
        if (peer !== undefined) peer.rxBytes = BigInt(value);
        break;
      case 'tx_bytes':
        if (peer !== undefined) peer.txBytes = BigInt(value);
        break;
      case 'allowed_ip':
        if (peer !== undefined) peer.addresses = [...peer.addresses, hostOf(value)];
        break;
    }
  }
  return { publicKey, listenPort, peers };
}

function keyOf(hex: string): Buffer {
  const key = Buffer.from(hex, 'hex');
  if (key.length !== KEY_LENGTH || hex.length !== 2 * KEY_LENGTH) throw new RangeError('a key is not 32 bytes of hex');
  return key;
}

function hostOf(prefix: string): IpAddress {
  const address = parseAddress(prefix.slice(0, prefix.indexOf('/')));
  if (address === undefined) throw new RangeError('an allowed IP is no address');
  return address;
}

/** One connection, kept open: its end tells that the process behind it is gone. */
export class UapiConnection {
  readonly #socket: Socket;
  #answer = '';
  #waiting: { resolve(answer: string): void; reject(error: Error): void } | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  /** Settles when the connection is over, for whatever reason. */
  readonly ended: Promise<void>;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('latin1');
    socket.on('data', (data: string) => this.#take(data));
    socket.on('error', () => {});
    this.ended = new Promise((resolve) => {
      socket.once('close', () => {
        this.#waiting?.reject(new CountersignError('unavailable', 'wireguard-go ended the connection'));
        this.#waiting = undefined;
        resolve();
      });
    });
  }

  /** Rejects with the system's error (ENOENT, ECONNREFUSED: nobody is there). */
  static open(path: string): Promise<UapiConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        // The connection alone must not keep the process alive.
        socket.unref();
        resolve(new UapiConnection(socket));
      });
    });
  }

  /** The whole answer, errno 0. @throws CountersignError unavailable, internal */
  request(text: string): Promise<string> {
    const answer = this.#queue.then(() => this.#exchange(text));
    this.#queue = answer.catch(() => {});
    return answer;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #exchange(text: string): Promise<string> {
    if (this.#socket.destroyed) throw new CountersignError('unavailable', 'wireguard-go is not running');
    this.#socket.ref();
    const deadline = setTimeout(() => this.#socket.destroy(), REQUEST_DEADLINE_MS);
    try {
      const answer = await new Promise<string>((resolve, reject) => {
        this.#answer = '';
        this.#waiting = { resolve, reject };
        this.#socket.write(text);
      });
      const errno = errnoOf(answer);
      if (errno !== 0) throw new CountersignError('internal', `wireguard-go refused the configuration: errno ${errno}`);
      return answer;
    } finally {
      clearTimeout(deadline);
      this.#socket.unref();
    }
  }

  #take(data: string): void {
    this.#answer += data;
    if (this.#answer.length > MAX_ANSWER_LENGTH) this.#socket.destroy();
    else if (errnoOf(this.#answer.slice(-32)) !== undefined) {
      this.#waiting?.resolve(this.#answer);
      this.#waiting = undefined;
    }
  }
}
