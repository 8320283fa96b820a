/** The kernel's WireGuard by generic netlink (linux/wireguard.h): its messages, to bytes and back. */

import {
  attribute,
  cString,
  decodeAttributeList,
  decodeAttributes,
  decodeMessages,
  encodeMessage,
  NLM_F,
  nested,
  u8,
  u16,
  u32,
} from '../base/netlink.ts';
import { addressFromBytes, addressWireBytes, isIpv4 } from '../model/address.ts';
import type { PeerChange, PeerState } from './device.ts';
import { type DeviceChange, type DeviceState, type Endpoint, formatEndpoint, hostPrefixLength } from './device.ts';

export const WG_FAMILY = 'wireguard';
const GENL_ID_CTRL = 0x10;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR = { familyId: 1, familyName: 2 } as const;
const CMD = { getDevice: 0, setDevice: 1 } as const;
const VERSION = 1;
const DEVICE = { ifindex: 1, privateKey: 3, publicKey: 4, flags: 5, listenPort: 6, fwmark: 7, peers: 8 } as const;
const PEER = {
  publicKey: 1,
  presharedKey: 2,
  flags: 3,
  endpoint: 4,
  keepalive: 5,
  lastHandshake: 6,
  rxBytes: 7,
  txBytes: 8,
  allowedIps: 9,
} as const;
const PEER_F_REMOVE_ME = 1;
const ALLOWED_IP = { family: 1, address: 2, length: 3 } as const;
const AF_INET = 2;
const AF_INET6 = 10;
/** Allowed IPs of one message: one takes 32 bytes at most, so that a nested attribute (64 KiB) holds them easily. */
const ADDRESSES_PER_MESSAGE = 1000;

export function encodeGetFamily(name: string): Buffer {
  return encodeMessage(GENL_ID_CTRL, 0, genl(CTRL_CMD_GETFAMILY), attribute(CTRL_ATTR.familyName, cString(name)));
}

export function decodeFamilyId(answer: Buffer): number | undefined {
  const message = decodeMessages(answer).find((m) => m.type === GENL_ID_CTRL);
  return message && decodeAttributes(message.body.subarray(4)).get(CTRL_ATTR.familyId)?.readUInt16LE(0);
}

export function encodeGetDevice(family: number, ifindex: number): Buffer {
  return encodeMessage(family, NLM_F.dump | NLM_F.ack, genl(CMD.getDevice), attribute(DEVICE.ifindex, u32(ifindex)));
}

/** One message for the device's own settings, then at least one for each peer: the kernel applies them in this order. */
export function encodeSetDevice(family: number, ifindex: number, change: DeviceChange): Buffer[] {
  const message = (...attributes: Buffer[]) =>
    encodeMessage(family, NLM_F.ack, genl(CMD.setDevice), attribute(DEVICE.ifindex, u32(ifindex)), ...attributes);
  const own: Buffer[] = [];
  if (change.privateKey !== undefined) own.push(attribute(DEVICE.privateKey, change.privateKey));
  if (change.listenPort !== undefined) own.push(attribute(DEVICE.listenPort, u16(change.listenPort)));
  if (change.fwmark !== undefined) own.push(attribute(DEVICE.fwmark, u32(change.fwmark)));
  const peers = (change.peers ?? []).flatMap(peerParts).map((peer) => message(nested(DEVICE.peers, nested(0, peer))));
  return own.length === 0 ? peers : [message(...own), ...peers];
}

function peerParts(peer: PeerChange): Buffer[] {
  const key = attribute(PEER.publicKey, peer.publicKey);
  if (peer.remove === true) return [Buffer.concat([key, attribute(PEER.flags, u32(PEER_F_REMOVE_ME))])];
  const first = [key];
  if (peer.presharedKey !== undefined) first.push(attribute(PEER.presharedKey, peer.presharedKey));
  if (peer.endpoint !== undefined) first.push(attribute(PEER.endpoint, sockaddr(peer.endpoint)));
  if (peer.keepalive !== undefined) first.push(attribute(PEER.keepalive, u16(peer.keepalive)));
  const addresses = (peer.addresses ?? []).map((address) =>
    nested(
      0,
      attribute(ALLOWED_IP.family, u16(isIpv4(address) ? AF_INET : AF_INET6)),
      attribute(ALLOWED_IP.address, addressWireBytes(address)),
      attribute(ALLOWED_IP.length, u8(hostPrefixLength(address))),
    ),
  );
  const parts: Buffer[] = [];
  for (let i = 0; i === 0 || i < addresses.length; i += ADDRESSES_PER_MESSAGE) {
    const some = addresses.slice(i, i + ADDRESSES_PER_MESSAGE);
    const head = i === 0 ? first : [key];
    parts.push(Buffer.concat(some.length === 0 ? head : [...head, nested(PEER.allowedIps, ...some)]));
  }
  return parts;
}

/** A dump comes in pieces: a peer whose allowed IPs did not fit goes on in the next message. @throws RangeError if malformed */
export function decodeDevice(family: number, answer: Buffer): DeviceState {
  let publicKey: Buffer | undefined;
  let listenPort = 0;
  const peers: PeerState[] = [];
  for (const message of decodeMessages(answer)) {
    if (message.type !== family) continue;
    const device = decodeAttributes(message.body.subarray(4));
    publicKey = device.get(DEVICE.publicKey) ?? publicKey;
    listenPort = device.get(DEVICE.listenPort)?.readUInt16LE(0) ?? listenPort;
    for (const { payload } of decodeAttributeList(device.get(DEVICE.peers) ?? Buffer.alloc(0))) {
      const peer = decodePeer(payload);
      const last = peers.at(-1);
      if (last?.publicKey.equals(peer.publicKey) === true) {
        peers[peers.length - 1] = { ...last, addresses: [...last.addresses, ...peer.addresses] };
      } else {
        peers.push(peer);
      }
    }
  }
  return { publicKey, listenPort, peers };
}

function decodePeer(bytes: Buffer): PeerState {
  const peer = decodeAttributes(bytes);
  const publicKey = peer.get(PEER.publicKey);
  if (publicKey?.length !== 32) throw new RangeError('a peer without a public key');
  const endpoint = peer.get(PEER.endpoint);
  const addresses = decodeAttributeList(peer.get(PEER.allowedIps) ?? Buffer.alloc(0)).map(
    ({ payload }) => decodeAttributes(payload).get(ALLOWED_IP.address) ?? Buffer.alloc(0),
  );
  return {
    publicKey,
    endpoint: endpoint === undefined ? '' : endpointText(endpoint),
    addresses: addresses.map(addressFromBytes),
    lastHandshake: Number(peer.get(PEER.lastHandshake)?.readBigInt64LE(0) ?? 0n),
    rxBytes: peer.get(PEER.rxBytes)?.readBigUInt64LE(0) ?? 0n,
    txBytes: peer.get(PEER.txBytes)?.readBigUInt64LE(0) ?? 0n,
  };
}

/** struct genlmsghdr */
function genl(command: number): Buffer {
  return Buffer.of(command, VERSION, 0, 0);
}

/** struct sockaddr_in, sockaddr_in6: the port in network order. */
function sockaddr(endpoint: Endpoint): Buffer {
  const v4 = isIpv4(endpoint.address);
  const out = Buffer.alloc(v4 ? 16 : 28);
  out.writeUInt16LE(v4 ? AF_INET : AF_INET6, 0);
  out.writeUInt16BE(endpoint.port, 2);
  addressWireBytes(endpoint.address).copy(out, v4 ? 4 : 8);
  return out;
}

function endpointText(bytes: Buffer): string {
  const v4 = bytes.length >= 16 && bytes.readUInt16LE(0) === AF_INET;
  if (!v4 && bytes.length < 24) return '';
  const address = addressFromBytes(v4 ? bytes.subarray(4, 8) : bytes.subarray(8, 24));
  return formatEndpoint({ address, port: bytes.readUInt16BE(2) });
}
