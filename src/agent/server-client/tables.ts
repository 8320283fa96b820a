/** What the server told this node, checked and indexed: entries, identities, nodes, revocations. What does not check is left out and logged. */
import { isDeepStrictEqual } from 'node:util';
import type {
  Entry,
  Node,
  Revocation as RevocationMessage,
  SignedIdentity,
} from '../../../proto/gen/countersign/server/v1/server.ts';
import { err, ok, type Result } from '../../base/errors.ts';
import { parsePrefix } from '../../model/address.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type {
  IdentityRow,
  IdentityTable,
  NodeInfo,
  NodeTable,
  Revocation,
  RevocationSubject,
  RevocationTable,
  TrustBundle,
} from '../../model/identity.ts';
import {
  type IpAddress,
  type NodeId,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type SpiffeId,
  securityIdentity,
  type TrustDomain,
} from '../../model/ids.ts';
import { MAX_NODES_PER_ADDRESS, PrefixIndex } from '../../model/prefix-index.ts';
import { nodeNameOf, nodeSpiffeId, parseNodeName, parseSpiffeId, parseTrustDomain } from '../../model/spiffe-id.ts';
import type { Certificate } from '../../pki/certificate.ts';
import { verifyRow } from './identity-rows.ts';

/** What one message changed in one table. */
export interface TableChange<T> {
  /** New or different. */
  readonly changed: readonly T[];
  /** As they were. One that was replaced by a `changed` one of the same key is not among them. */
  readonly removed: readonly T[];
}

const UNCHANGED = { changed: [], removed: [] } as const;

/** Told of each item that was left out, with a sentence. */
export type Refused = (what: string, why: string) => void;

/** The difference of two maps, by value. */
function difference<K, T>(before: ReadonlyMap<K, T>, after: ReadonlyMap<K, T>): TableChange<T> {
  return {
    changed: [...after].filter(([key, value]) => !isDeepStrictEqual(before.get(key), value)).map(([, value]) => value),
    removed: [...before].filter(([key]) => !after.has(key)).map(([, value]) => value),
  };
}

export class IdentityRows implements IdentityTable {
  #byIdentity = new Map<SecurityIdentity, IdentityRow>();
  #bySpiffeId = new Map<SpiffeId, IdentityRow>();
  /** The highest sequence ever seen for an identity, also of rows that are gone: an old signature must not bring back an old row. */
  readonly #sequences = new Map<SecurityIdentity, bigint>();

  byIdentity(identity: SecurityIdentity): IdentityRow | undefined {
    return this.#byIdentity.get(identity);
  }

  bySpiffeId(spiffeId: SpiffeId): IdentityRow | undefined {
    return this.#bySpiffeId.get(spiffeId);
  }

  rows(): readonly IdentityRow[] {
    return [...this.#byIdentity.values()];
  }

  /** `signer` is undefined if no verified chain is there: then no row can be taken. */
  update(
    snapshot: boolean,
    signed: readonly SignedIdentity[],
    removed: readonly number[],
    signer: Certificate | undefined,
    bundle: TrustBundle,
    refused: Refused,
  ): TableChange<IdentityRow> {
    // A revocation is not to wait until thousands of rows are compared with themselves.
    if (!snapshot && signed.length === 0 && removed.length === 0) return UNCHANGED;
    const before = this.#byIdentity;
    const after = new Map(snapshot ? [] : before);
    for (const identity of removed) after.delete(identity as SecurityIdentity);
    const nodes = new Map<string, SpiffeId>();
    for (const message of signed) {
      const verified =
        signer === undefined
          ? err('the chain of its signer does not verify')
          : verifyRow(message, signer, bundle, nodes);
      if (!verified.ok) {
        refused('identity row', verified.error);
        continue;
      }
      const { row, sequence } = verified.value;
      if (sequence < (this.#sequences.get(row.identity) ?? 0n)) {
        refused('identity row', `identity ${row.identity}: older than one seen before`);
        continue;
      }
      this.#sequences.set(row.identity, sequence);
      // The same object if nothing changed: whoever keeps rows, as the policy does, need not keep two of each after a snapshot.
      const known = before.get(row.identity);
      after.set(row.identity, known !== undefined && isDeepStrictEqual(known, row) ? known : row);
    }
    const bySpiffeId = new Map<SpiffeId, IdentityRow>();
    for (const row of after.values()) {
      const other = bySpiffeId.get(row.spiffeId);
      if (other === undefined) bySpiffeId.set(row.spiffeId, row);
      else {
        // an SVID would not say which labels its holder has: neither row counts
        refused('identity row', `identities ${other.identity} and ${row.identity} are both ${row.spiffeId}`);
        after.delete(other.identity);
        after.delete(row.identity);
      }
    }
    for (const [spiffeId, row] of bySpiffeId) if (!after.has(row.identity)) bySpiffeId.delete(spiffeId);
    this.#byIdentity = after;
    this.#bySpiffeId = bySpiffeId;
    return difference(before, after);
  }
}

export class Nodes implements NodeTable {
  readonly #trustDomain: TrustDomain;
  #byName = new Map<NodeName, NodeInfo>();
  readonly #byId = new Map<NodeId, NodeInfo>();
  /** Of nodes with the same prefix the lower name first, on every node and after every restart. */
  readonly #byPrefix = new PrefixIndex<NodeInfo>((a, b) => (a.name < b.name ? -1 : 1));

  constructor(trustDomain: TrustDomain) {
    this.#trustDomain = trustDomain;
  }

  byName(name: NodeName): NodeInfo | undefined {
    return this.#byName.get(name);
  }

  byId(id: NodeId): NodeInfo | undefined {
    return this.#byId.get(id);
  }

  bySpiffeId(spiffeId: SpiffeId): NodeInfo | undefined {
    const name = nodeNameOf(spiffeId);
    const node = name === undefined ? undefined : this.#byName.get(name);
    return node?.spiffeId === spiffeId ? node : undefined;
  }

  candidates(address: IpAddress): readonly NodeInfo[] {
    // a set keeps the first, which is the most specific, of a node's prefixes
    return [...new Set(this.#byPrefix.covering(address))].slice(0, MAX_NODES_PER_ADDRESS);
  }

  nodes(): readonly NodeInfo[] {
    return [...this.#byName.values()];
  }

  update(
    snapshot: boolean,
    messages: readonly Node[],
    removed: readonly string[],
    refused: Refused,
  ): TableChange<NodeInfo> {
    const after = new Map<NodeName, NodeInfo>();
    for (const message of messages) {
      const node = parseNode(message, this.#trustDomain);
      if (node.ok) after.set(node.value.name, node.value);
      else refused('node', node.error);
    }
    const gone = snapshot ? [...this.#byName.keys()] : (removed as readonly NodeName[]);
    const removals = gone.flatMap((name) => (after.has(name) ? [] : (this.#byName.get(name) ?? [])));
    const changes = [...after.values()].filter((node) => !isDeepStrictEqual(this.#byName.get(node.name), node));
    for (const node of [...removals, ...changes]) this.#forget(this.#byName.get(node.name));
    for (const node of removals) this.#byName.delete(node.name);
    for (const node of changes) {
      this.#byName.set(node.name, node);
      this.#byId.set(node.id, node);
      for (const prefix of node.prefixes) this.#byPrefix.add(prefix, node);
    }
    return { changed: changes, removed: removals };
  }

  #forget(node: NodeInfo | undefined): void {
    if (node === undefined) return;
    if (this.#byId.get(node.id) === node) this.#byId.delete(node.id);
    for (const prefix of node.prefixes) this.#byPrefix.remove(prefix, node);
  }
}

function parseNode(message: Node, trustDomain: TrustDomain): Result<NodeInfo, string> {
  const name = parseNodeName(message.name);
  if (!name.ok) return name;
  const spiffeId = nodeSpiffeId(trustDomain, name.value);
  if (message.spiffeId !== spiffeId) return err(`${name.value}: its SPIFFE ID is not ${spiffeId}`);
  if (message.nodeId === 0) return err(`${name.value}: its node id is 0`);
  const prefixes = message.prefixes.map(parsePrefix);
  if (!prefixes.every((prefix) => prefix !== undefined)) return err(`${name.value}: a prefix of it is none`);
  const { incarnation } = message;
  // A copy has room for what is in it; what was decoded has room for sixteen more, in each of thousands of nodes.
  const peerAddresses = [...message.peerAddresses];
  return ok({ name: name.value, spiffeId, id: nodeId(message.nodeId), incarnation, peerAddresses, prefixes });
}

export class Entries {
  #entries = new Map<string, RegistrationEntry>();

  list(): readonly RegistrationEntry[] {
    return [...this.#entries.values()];
  }

  /** `self`: entries of other nodes are none of ours. */
  update(
    snapshot: boolean,
    messages: readonly Entry[],
    removed: readonly string[],
    self: SpiffeId,
    refused: Refused,
  ): TableChange<RegistrationEntry> {
    if (!snapshot && messages.length === 0 && removed.length === 0) return UNCHANGED;
    const before = this.#entries;
    const after = new Map(snapshot ? [] : before);
    for (const id of removed) after.delete(id);
    for (const message of messages) {
      const spiffeId = parseSpiffeId(message.spiffeId);
      if (!spiffeId.ok || message.parentId !== self) {
        refused('entry', spiffeId.ok ? `${message.id}: of another node` : `${message.id}: ${spiffeId.error}`);
        continue;
      }
      const federatesWith = message.federatesWith.map(parseTrustDomain);
      for (const name of federatesWith)
        if (!name.ok) refused('entry', `${message.id}: federates with none: ${name.error}`);
      after.set(message.id, {
        id: message.id,
        spiffeId: spiffeId.value.id,
        parentId: self,
        selectors: message.selectors,
        hint: message.hint,
        identity: securityIdentity(message.securityIdentity),
        labels: { ...message.labels },
        ttlSeconds: message.x509TtlSeconds,
        jwtTtlSeconds: message.jwtTtlSeconds,
        federatesWith: federatesWith.flatMap((name) => (name.ok ? [name.value] : [])),
        dnsNames: message.dnsNames,
      });
    }
    this.#entries = after;
    return difference(before, after);
  }
}

/** What was taken back stays so: a snapshot of a server that was restored, or that lags behind another, brings none of it back. */
export class Revocations implements RevocationTable {
  /** By what they say: two servers may give the same number to two of them. */
  readonly #known = new Map<string, Revocation>();
  readonly #serials = new Set<string>();
  /** By SPIFFE ID and by node name: the latest issuedUntil, Unix seconds. */
  readonly #spiffeIds = new Map<SpiffeId, number>();
  readonly #nodes = new Map<NodeName, number>();
  readonly #authorities = new Set<string>();

  isRevoked({ spiffeId, serial, node, notBeforeMs, authorities }: RevocationSubject): boolean {
    if (this.#serials.has(serial) || authorities?.some((id) => this.#authorities.has(id)) === true) return true;
    const until = this.#spiffeIds.get(spiffeId);
    if (until !== undefined && notBeforeMs <= until * 1000) return true;
    const name = node === undefined ? undefined : nodeNameOf(node);
    const nodeUntil = name === undefined ? undefined : this.#nodes.get(name);
    return nodeUntil !== undefined && notBeforeMs <= nodeUntil * 1000;
  }

  list(): readonly Revocation[] {
    return [...this.#known.values()];
  }

  /** The new ones. @throws Error if one cannot be read: to pass over a revocation would be to ignore it. */
  update(messages: readonly RevocationMessage[]): readonly Revocation[] {
    const parsed = messages.map(parseRevocation);
    const fresh = parsed.filter((revocation) => !this.#known.has(textOf(revocation)));
    for (const revocation of fresh) {
      const { what, issuedUntil } = revocation;
      this.#known.set(textOf(revocation), revocation);
      if ('serial' in what) this.#serials.add(what.serial);
      else if ('spiffeId' in what) raise(this.#spiffeIds, what.spiffeId, issuedUntil);
      else if ('node' in what) raise(this.#nodes, what.node, issuedUntil);
      else this.#authorities.add(what.authority);
    }
    return fresh;
  }
}

function textOf({ what, issuedUntil }: Revocation): string {
  return `${JSON.stringify(what)} ${issuedUntil}`;
}

function raise<K>(map: Map<K, number>, key: K, value: number): void {
  map.set(key, Math.max(map.get(key) ?? Number.NEGATIVE_INFINITY, value));
}

function parseRevocation({ sequence, what, issuedUntil, reason }: RevocationMessage): Revocation {
  const rest = { sequence, issuedUntil: Number(issuedUntil), reason };
  switch (what?.$case) {
    case 'serial':
      return { ...rest, what: { serial: what.value } };
    case 'authority':
      if (!/^([0-9a-f]{2}){1,64}$/.test(what.value)) break;
      return { ...rest, what: { authority: what.value } };
    case 'spiffeId': {
      const id = parseSpiffeId(what.value);
      if (id.ok) return { ...rest, what: { spiffeId: id.value.id } };
      break;
    }
    case 'node': {
      const name = parseNodeName(what.value);
      if (name.ok) return { ...rest, what: { node: name.value } };
      break;
    }
  }
  throw new Error(`revocation ${sequence} cannot be read`);
}
