/**
 * What Sync sends, encoded once and shared by all streams. In protobuf the encodings of two messages, one after the other, are
 * the encoding of both merged: so a message is put together from bytes that others get too.
 */
import type { CaBundle } from '../ca/api.ts';
import {
  type Bundle,
  type Entry,
  type Node,
  type Revocation as RevocationMessage,
  SyncResponse,
} from '../proto/gen/countersign/server/v1/server.ts';
import type { Revocation } from '../src/model/identity.ts';
import type { NodeName, SpiffeId } from '../src/model/ids.ts';
import type { RegisteredEntry } from './feed.ts';
import type { NodeRecord } from './store.ts';

/** A change that is larger goes in several messages, so that a slow agent never has more than about this much waiting for it. */
const PART_BYTES = 64 << 10;

const MORE = encode({ more: true });

export function encode(message: Partial<SyncResponse>): Buffer {
  return Buffer.from(SyncResponse.encode(SyncResponse.fromPartial(message)).finish());
}

/** Encoded messages joined into as few parts as there need be, in order. Each has at least one of them. */
export function packed(encoded: Iterable<Buffer>): Buffer[] {
  const parts: Buffer[] = [];
  let waiting: Buffer[] = [];
  let bytes = 0;
  const flush = () => {
    if (waiting.length > 0) parts.push(Buffer.concat(waiting));
    waiting = [];
    bytes = 0;
  };
  for (const one of encoded) {
    if (bytes + one.length > PART_BYTES) flush();
    waiting.push(one);
    bytes += one.length;
  }
  flush();
  return parts;
}

/** As `packed`, each part with the mark that another follows: as it is, for any stream. */
export function packedWithMore(encoded: Iterable<Buffer>): Buffer[] {
  return packed(encoded).map((part) => Buffer.concat([part, MORE]));
}

/** One change as its messages: first what all get (`head`), then shared parts as they are, then what is this node's own. */
export function change(head: Buffer, shared: readonly Buffer[], own: readonly Buffer[]): Buffer[] {
  if (shared.length === 0) {
    const parts = packed([head, ...own]);
    return parts.map((part, i) => (i < parts.length - 1 ? Buffer.concat([part, MORE]) : part));
  }
  const tail = packed(own);
  const last = tail.pop() ?? Buffer.alloc(0);
  return [Buffer.concat([head, MORE]), ...shared, ...tail.map((part) => Buffer.concat([part, MORE])), last];
}

export function entryMessage(entry: RegisteredEntry, parentId: SpiffeId): Entry {
  return {
    id: entry.id,
    spiffeId: entry.spiffeId,
    parentId,
    selectors: [...entry.selectors],
    x509TtlSeconds: entry.ttlSeconds,
    dnsNames: [...entry.dnsNames],
    hint: entry.hint,
    securityIdentity: entry.identity,
    labels: { ...entry.labels },
    jwtTtlSeconds: entry.jwtTtlSeconds,
    federatesWith: [...entry.federatesWith],
  };
}

export function nodeMessage(
  node: NodeRecord,
  nodes: { spiffeIdOf(name: NodeName): SpiffeId; prefixesOf(name: NodeName): readonly string[] },
): Node {
  return {
    name: node.name,
    spiffeId: nodes.spiffeIdOf(node.name),
    nodeId: node.nodeId,
    incarnation: BigInt(node.incarnation),
    peerAddresses: [...node.peerAddresses],
    prefixes: [...nodes.prefixesOf(node.name)],
  };
}

export function bundleMessage(bundle: CaBundle): Bundle {
  return {
    certificates: bundle.authorities,
    sequence: bundle.sequence,
    jwtAuthorities: bundle.jwtAuthorities.map(({ keyId, publicKey, expiresAtMs, tainted }) => ({
      keyId,
      publicKey,
      expiresAt: BigInt(Math.floor((expiresAtMs ?? 0) / 1000)),
      tainted: tainted ?? false,
    })),
    refreshHintSeconds: bundle.refreshHintSeconds,
    taintedKeyIds: bundle.taintedKeyIds,
  };
}

export function revocationMessage({ sequence, what, issuedUntil, reason }: Revocation): RevocationMessage {
  const named: RevocationMessage['what'] =
    'spiffeId' in what
      ? { $case: 'spiffeId', value: what.spiffeId }
      : 'serial' in what
        ? { $case: 'serial', value: what.serial }
        : 'node' in what
          ? { $case: 'node', value: what.node }
          : { $case: 'authority', value: what.authority };
  return { sequence, what: named, issuedUntil: BigInt(issuedUntil), reason };
}
