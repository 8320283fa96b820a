/**
 * The address prefixes that rules name, as identities: an address outside the cluster is the narrowest of them that contains
 * it, and what a broader prefix may or may not do holds for the narrower ones inside it.
 */
import { addressBytes, datapathPrefixLength, isIpv4, type Prefix } from '../model/address.ts';
import type { CidrIdentity } from '../model/datapath.ts';
import { IDENTITY_WORLD, type IpAddress, type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import type { Peer } from './rules.ts';

export type CidrPeer = Extract<Peer, { kind: 'cidr' }>;

export const WORLD_IPV4: CidrPeer = {
  kind: 'cidr',
  prefix: { address: '0.0.0.0' as IpAddress, length: 0 },
  except: [],
};
export const WORLD_IPV6: CidrPeer = { kind: 'cidr', prefix: { address: '::' as IpAddress, length: 0 }, except: [] };

/** As in Cilium. */
const FIRST_CIDR_IDENTITY = 1 << 24;

export interface CidrNode {
  readonly prefix: Prefix;
  readonly key: string;
  readonly identity: SecurityIdentity;
  /** The narrowest of the others that contains it. */
  readonly parent: CidrNode | undefined;
  readonly first: Buffer;
}

export interface Cidrs {
  /** Broad before narrow, by address. */
  readonly nodes: readonly CidrNode[];
  readonly identities: readonly CidrIdentity[];
  ofIdentity(identity: SecurityIdentity): CidrNode | undefined;
  identityOfAddress(address: IpAddress): SecurityIdentity;
}

export function isCidrIdentity(identity: number): boolean {
  return identity >= FIRST_CIDR_IDENTITY;
}

export function cidrKey({ address, length }: Prefix): string {
  return `${address}/${length}`;
}

export function cidrsOf(peers: Iterable<CidrPeer>): Cidrs {
  const prefixes = new Map<string, Prefix>();
  for (const { prefix, except } of peers) {
    prefixes.set(cidrKey(prefix), prefix);
    for (const hole of except) prefixes.set(cidrKey(hole), hole);
  }
  const nodes = nest([...prefixes.values()]);
  const byIdentity = new Map<number, CidrNode>(nodes.map((node) => [node.identity, node]));
  const identities: CidrIdentity[] = nodes.map(({ prefix, identity }) => ({ prefix, identity }));
  // In the datapath's 16 bytes an IPv6 prefix as broad as this holds every IPv4 address too: they stay what they are.
  const swallows = ({ prefix }: CidrNode) => prefix.address === '::' && prefix.length <= 80;
  if (!prefixes.has(cidrKey(WORLD_IPV4.prefix)) && nodes.some(swallows)) {
    identities.push({ prefix: WORLD_IPV4.prefix, identity: IDENTITY_WORLD });
  }
  return {
    nodes,
    identities,
    ofIdentity: (identity) => byIdentity.get(identity),
    identityOfAddress: (address) => narrowest(nodes, address)?.identity ?? IDENTITY_WORLD,
  };
}

/** Does a rule that names this peer speak of the addresses whose narrowest prefix is this node? */
export function cidrPeerMatches({ prefix, except }: CidrPeer, node: CidrNode): boolean {
  const names = (one: Prefix) => lineage(node).some(({ key }) => key === cidrKey(one));
  return names(prefix) && !except.some(names);
}

/** The node and all that contain it, narrow before broad. */
export function lineage(node: CidrNode): CidrNode[] {
  const found: CidrNode[] = [];
  for (let at: CidrNode | undefined = node; at !== undefined; at = at.parent) found.push(at);
  return found;
}

function nest(prefixes: readonly Prefix[]): CidrNode[] {
  const sorted = prefixes
    .map((prefix) => ({ prefix, key: cidrKey(prefix), first: addressBytes(prefix.address) }))
    .sort(
      (a, b) =>
        Number(isIpv4(b.prefix.address)) - Number(isIpv4(a.prefix.address)) ||
        a.first.compare(b.first) ||
        a.prefix.length - b.prefix.length,
    );
  const nodes: CidrNode[] = [];
  let around: CidrNode | undefined;
  for (const { prefix, key, first } of sorted) {
    while (around !== undefined && !holds(around, prefix.address, first)) around = around.parent;
    around = { prefix, key, identity: identityOf(key), parent: around, first };
    nodes.push(around);
  }
  return nodes;
}

function holds({ prefix, first }: CidrNode, address: IpAddress, bytes: Buffer): boolean {
  if (isIpv4(prefix.address) !== isIpv4(address)) return false;
  const length = datapathPrefixLength(prefix);
  const whole = length >> 3;
  if (first.compare(bytes, 0, whole, 0, whole) !== 0) return false;
  const rest = length & 7;
  return rest === 0 || ((first[whole]! ^ bytes[whole]!) & (0xff00 >> rest) & 0xff) === 0;
}

function narrowest(nodes: readonly CidrNode[], address: IpAddress): CidrNode | undefined {
  const bytes = addressBytes(address);
  const v4 = isIpv4(address);
  // The last that does not begin after the address: it, or one around it, is the narrowest.
  let low = 0;
  let high = nodes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const node = nodes[middle]!;
    const family = Number(isIpv4(node.prefix.address));
    const after = family === Number(v4) ? node.first.compare(bytes) > 0 : family < Number(v4);
    if (after) high = middle;
    else low = middle + 1;
  }
  let node = nodes[low - 1];
  while (node !== undefined && !holds(node, address, bytes)) node = node.parent;
  return node;
}

const numbers = new Map<string, SecurityIdentity>();
const taken = new Set<number>();

/**
 * One number for each prefix as long as the process lives, and almost always the same one in the next: it is drawn from the
 * prefix itself, so that the entries an earlier agent left in the kernel do not mean another prefix now.
 */
function identityOf(key: string): SecurityIdentity {
  const known = numbers.get(key);
  if (known !== undefined) return known;
  let number = hash(key);
  while (number < FIRST_CIDR_IDENTITY || taken.has(number)) number = (number + FIRST_CIDR_IDENTITY) >>> 0;
  taken.add(number);
  const identity = securityIdentity(number);
  numbers.set(key, identity);
  return identity;
}

/** FNV-1a, 32 bits. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value >>> 0;
}
