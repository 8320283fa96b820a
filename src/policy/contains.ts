/**
 * Does one rule speak of all that another speaks of? Decided from what is written, without any workload, so "no" also
 * means "cannot be told".
 */
import { datapathPrefixLength, isIpv4, type Prefix, prefixContains } from '../model/address.ts';
import type { Entity, Peer, PortMatch, Requirement, Rule, Selector, Subject } from './rules.ts';

export function subjectContains(outer: Subject, inner: Subject): boolean {
  return outer.kind === inner.kind && selectorContains(outer.selector, inner.selector);
}

/** All that `inner` says of traffic `outer` says as well: peers and ports, not what happens to it. */
export function trafficContains(outer: Rule, inner: Rule): boolean {
  return peersContain(outer.peers, inner.peers) && portsContain(outer.ports, inner.ports);
}

function selectorContains(outer: Selector, inner: Selector): boolean {
  return outer.requirements.every((wanted) => inner.requirements.some((given) => implies(given, wanted)));
}

/** Whatever meets `given` meets `wanted`. */
function implies(given: Requirement, wanted: Requirement): boolean {
  if (given.key !== wanted.key) return false;
  const among = (values: readonly string[], all: readonly string[]) => values.every((value) => all.includes(value));
  switch (wanted.operator) {
    case 'In':
      return given.operator === 'In' && among(given.values, wanted.values);
    case 'NotIn':
      if (given.operator === 'In') return !given.values.some((value) => wanted.values.includes(value));
      return given.operator === 'DoesNotExist' || (given.operator === 'NotIn' && among(wanted.values, given.values));
    case 'Exists':
      return given.operator === 'In' || given.operator === 'Exists';
    case 'DoesNotExist':
      return given.operator === 'DoesNotExist';
    default:
      return wanted.operator satisfies never;
  }
}

/** Two requirements that no set of labels meets together; undefined: none was found. */
export function contradiction({ requirements }: Selector): readonly [Requirement, Requirement] | undefined {
  for (const [i, a] of requirements.entries()) {
    const b = requirements
      .slice(i + 1)
      .find((other) => a.key === other.key && (excludes(a, other) || excludes(other, a)));
    if (b !== undefined) return [a, b];
  }
  return undefined;
}

function excludes(a: Requirement, b: Requirement): boolean {
  if (b.operator === 'DoesNotExist') return a.operator === 'In' || a.operator === 'Exists';
  if (a.operator !== 'In') return false;
  if (b.operator === 'In') return !a.values.some((value) => b.values.includes(value));
  return b.operator === 'NotIn' && a.values.every((value) => b.values.includes(value));
}

function peersContain(outer: Rule['peers'], inner: Rule['peers']): boolean {
  if (outer === 'any') return true;
  if (inner === 'any') return outer.some((peer) => peer.kind === 'entity' && peer.entity === 'all');
  return inner.every((one) => outer.some((other) => peerContains(other, one)));
}

/** What each entity holds besides itself. */
const HOLDS: Readonly<Record<Entity, readonly (Entity | 'workloads' | 'cidr')[]>> = {
  all: ['cluster', 'host', 'none', 'remote-node', 'world', 'world-ipv4', 'world-ipv6', 'workloads', 'cidr'],
  cluster: ['host', 'none', 'remote-node', 'workloads'],
  world: ['none', 'world-ipv4', 'world-ipv6', 'cidr'],
  'world-ipv4': ['none'],
  'world-ipv6': ['none'],
  host: ['none'],
  'remote-node': ['none'],
  none: [],
};

function peerContains(outer: Peer, inner: Peer): boolean {
  if (outer.kind === 'entity') {
    const wanted = inner.kind === 'entity' ? inner.entity : inner.kind;
    return outer.entity === wanted || HOLDS[outer.entity].includes(wanted);
  }
  if (outer.kind === 'workloads') return inner.kind === 'workloads' && selectorContains(outer.selector, inner.selector);
  if (inner.kind !== 'cidr' || !holds(outer.prefix, inner.prefix)) return false;
  return outer.except.every(
    (hole) =>
      inner.except.some((other) => holds(other, hole)) || (!holds(hole, inner.prefix) && !holds(inner.prefix, hole)),
  );
}

function holds(outer: Prefix, inner: Prefix): boolean {
  return (
    isIpv4(outer.address) === isIpv4(inner.address) &&
    datapathPrefixLength(outer) <= datapathPrefixLength(inner) &&
    prefixContains(outer, inner.address)
  );
}

function portsContain(outer: Rule['ports'], inner: Rule['ports']): boolean {
  if (outer === 'any') return true;
  return inner !== 'any' && inner.every((one) => outer.some((other) => portContains(other, one)));
}

function portContains(outer: PortMatch, inner: PortMatch): boolean {
  if ('name' in inner) {
    if ('name' in outer) return outer.name === inner.name && inner.protocols.every((p) => outer.protocols.includes(p));
    return 'ports' in outer && inner.protocols.every((p) => p === outer.protocol);
  }
  if ('name' in outer || outer.protocol !== inner.protocol) return false;
  if ('ports' in outer) return true;
  return !('ports' in inner) && outer.first <= inner.first && inner.last <= outer.last;
}
