/** What a WireGuard device is told and what it says, whichever implementation it is: the port that both backends serve. */
import { isIP } from 'node:net';
import { addressWireBytes, parseAddress } from '../model/address.ts';
import type { IpAddress } from '../model/ids.ts';

export const KEY_LENGTH = 32;

/** Applied in the order given. Keys are raw bytes. */
export interface DeviceChange {
  readonly privateKey?: Buffer;
  readonly listenPort?: number;
  /** Of the encrypted packets; 0: none. */
  readonly fwmark?: number;
  readonly peers?: readonly PeerChange[];
}

export interface PeerChange {
  readonly publicKey: Buffer;
  /** Ends its session. Nothing else is looked at. */
  readonly remove?: boolean;
  readonly presharedKey?: Buffer;
  readonly endpoint?: Endpoint;
  /** Seconds, 0: off. Turning it on sends a packet at once, and with it a handshake if there is no session. */
  readonly keepalive?: number;
  /** Added; an address of another peer moves here. */
  readonly addresses?: readonly IpAddress[];
}

export interface Endpoint {
  readonly address: IpAddress;
  readonly port: number;
}

/** What a device holds, without its secrets. */
export interface DeviceState {
  readonly publicKey: Buffer | undefined;
  readonly listenPort: number;
  readonly peers: readonly PeerState[];
}

export interface PeerState {
  readonly publicKey: Buffer;
  readonly endpoint: string;
  /** Host prefixes only; a device of ours has no others. */
  readonly addresses: readonly IpAddress[];
  /** Unix seconds, 0: never. */
  readonly lastHandshake: number;
  readonly rxBytes: bigint;
  readonly txBytes: bigint;
}

export interface WireguardDevice {
  readonly implementation: 'kernel' | 'wireguard-go';
  readonly ifindex: number;
  apply(change: DeviceChange): Promise<void>;
  read(): Promise<DeviceState>;
  /** Leaves the device standing. */
  close(): Promise<void>;
  destroy(): Promise<void>;
}

/** "IP:port" or "[IPv6]:port"; undefined if it is neither or the port is 0. */
export function parseEndpoint(text: string): Endpoint | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([1-9]\d{0,4})$/.exec(text);
  if (match === null) return undefined;
  const address = parseAddress(match[1] ?? match[2]!);
  const port = Number(match[3]);
  if (address === undefined || port > 65535 || isIP(address) !== (match[1] === undefined ? 4 : 6)) return undefined;
  return { address, port };
}

export function formatEndpoint(endpoint: Endpoint): string {
  return isIP(endpoint.address) === 4
    ? `${endpoint.address}:${endpoint.port}`
    : `[${endpoint.address}]:${endpoint.port}`;
}

/** 32 or 128. */
export function hostPrefixLength(address: IpAddress): number {
  return addressWireBytes(address).length * 8;
}
