/**
 * What the policies say of one packet, read rule by rule: slow, and as plain as can be. `explain`, `policy test` and the
 * agents' questions are answered here; the kernel's entries are made elsewhere, and tests hold the two against each other.
 */
import { AUTH_TYPE_CODE, type Direction } from '../model/datapath.ts';
import type { NamedPort } from '../model/identity.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type SecurityIdentity } from '../model/ids.ts';
import { AUTH_TYPE_OF, type Claim, decidingClaim, isStrongerCode, narrowestClaim } from './auth-mode.ts';
import { type CidrNode, type Cidrs, cidrPeerMatches, isCidrIdentity, WORLD_IPV4, WORLD_IPV6 } from './cidr.ts';
import type { Decision, Outcome, Verdict } from './compiled.ts';
import { holds, selects } from './labels.ts';
import type { NumberedRule, NumberedSpec } from './numbered.ts';
import type { Entity, Peer, PortMatch, Requirement, Subject } from './rules.ts';

/** Whoever may stand at one end of a packet. */
export type Party =
  | { readonly kind: 'workload'; readonly labels: ReadonlyMap<string, string>; readonly ports: readonly NamedPort[] }
  | { readonly kind: 'host' | 'remote-node' | 'world' }
  | { readonly kind: 'cidr'; readonly node: CidrNode };

export interface Judge {
  decide(from: SecurityIdentity, to: SecurityIdentity, protocol: number, port: number): Decision;
}

export interface JudgeInputs {
  readonly specs: readonly NumberedSpec[];
  readonly cidrs: Cidrs;
  readonly nodeLabels: ReadonlyMap<string, string> | undefined;
  workload(identity: SecurityIdentity): Extract<Party, { kind: 'workload' }> | undefined;
}

/** What is said of one endpoint in one direction. */
interface Side {
  readonly rules: readonly NumberedRule[];
  readonly defaultDeny: boolean;
  readonly requires: readonly Requirement[];
}

const ALLOWED: Outcome = { verdict: 'allow', authType: 'none', rule: 0 };
const DENIED: Outcome = { verdict: 'deny', authType: 'none', rule: 0 };

const OPPOSITE: Readonly<Record<Direction, Direction>> = { egress: 'ingress', ingress: 'egress' };

export function createJudge(inputs: JudgeInputs): Judge {
  const { cidrs } = inputs;
  const remembered = new Map<string, Side>();

  /** What is said of an endpoint by the policies in force, or by all of them. */
  function sideOf(identity: SecurityIdentity, party: Party, direction: Direction, all: boolean): Side {
    const key = `${identity} ${direction} ${all}`;
    let side = remembered.get(key);
    if (side === undefined) {
      const specs = inputs.specs.filter(
        ({ spec, enforced }) => (all || enforced) && selectsParty(spec.subject, party, inputs.nodeLabels),
      );
      side = {
        rules: specs.flatMap(({ rules }) => rules.filter(({ rule }) => rule.direction === direction)),
        defaultDeny: specs.some(({ spec }) => spec.defaultDeny[direction]),
        requires: specs.flatMap(({ spec }) => spec.requires[direction]),
      };
      if (remembered.size >= 4_096) remembered.clear();
      remembered.set(key, side);
    }
    return side;
  }

  function partyOf(identity: SecurityIdentity): Party | undefined {
    if (identity === IDENTITY_HOST) return { kind: 'host' };
    if (identity === IDENTITY_REMOTE_NODE) return { kind: 'remote-node' };
    if (identity === IDENTITY_WORLD) return { kind: 'world' };
    if (!isCidrIdentity(identity)) return inputs.workload(identity);
    const node = cidrs.ofIdentity(identity);
    return node && { kind: 'cidr', node };
  }

  /** One side's own policy. */
  function outcome(
    direction: Direction,
    local: SecurityIdentity,
    remote: SecurityIdentity,
    protocol: number,
    port: number,
    all: boolean,
  ): Outcome {
    const here = partyOf(local);
    const there = partyOf(remote);
    // Nobody knows which rule, of whatever side, would name an identity without labels.
    if (here === undefined || there === undefined) return DENIED;
    const receiver = direction === 'ingress' ? here : there;
    const named = receiver.kind === 'workload' ? receiver.ports : [];
    const side = sideOf(local, here, direction, all);
    const matching = side.rules.flatMap((numbered) => claimsOf(numbered, side.requires, there, protocol, port, named));
    const denies = matching.filter(({ action }) => action === 'deny').map(({ rule }) => rule);
    if (denies.length > 0) return { ...DENIED, rule: Math.min(...denies) };
    const decides = decidingClaim(matching);
    const narrowest = narrowestClaim(matching);
    if (narrowest === undefined) return side.defaultDeny ? DENIED : ALLOWED;
    const authType = decides?.mode === undefined ? 'none' : AUTH_TYPE_OF[decides.mode];
    return { verdict: 'allow', authType, rule: (authType === 'none' ? narrowest : decides!).rule };
  }

  /** At one side's hook: its own policy's verdict, the stronger authentication of both. */
  function verdictAt(
    direction: Direction,
    local: SecurityIdentity,
    remote: SecurityIdentity,
    protocol: number,
    port: number,
  ): Verdict {
    const [enforced, observed] = [false, true].map((all) => {
      const own = outcome(direction, local, remote, protocol, port, all);
      return strongerOf(own, outcome(OPPOSITE[direction], remote, local, protocol, port, all));
    }) as [Outcome, Outcome];
    return isSame(enforced, observed) ? enforced : { ...enforced, observed };
  }

  return {
    decide(from, to, protocol, port) {
      const egress = verdictAt('egress', from, to, protocol, port);
      const ingress = verdictAt('ingress', to, from, protocol, port);
      const enforced = together(egress, ingress);
      const observed = together(egress.observed ?? egress, ingress.observed ?? ingress);
      return { ...enforced, ...(isSame(enforced, observed) ? {} : { observed }), egress, ingress };
    },
  };
}

function isSame(a: Outcome, b: Outcome): boolean {
  return a.verdict === b.verdict && a.authType === b.authType;
}

/** Both ends must allow; each hook already demands what the other will. */
function strongerOf(own: Outcome, other: Outcome): Outcome {
  if (own.verdict === 'deny' || other.verdict === 'deny') return own;
  return isStrongerCode(AUTH_TYPE_CODE[other.authType], AUTH_TYPE_CODE[own.authType]) ? other : own;
}

function together(egress: Outcome, ingress: Outcome): Outcome {
  const { verdict, authType, rule } = [egress, ingress].find((side) => side.verdict === 'deny') ?? egress;
  return { verdict, authType, rule: verdict === 'allow' ? rule || ingress.rule : rule };
}

export function selectsParty(
  subject: Subject,
  party: Party,
  nodeLabels: ReadonlyMap<string, string> | undefined,
): boolean {
  if (subject.kind === 'workloads') return party.kind === 'workload' && selects(subject.selector, party.labels);
  return party.kind === 'host' && nodeLabels !== undefined && selects(subject.selector, nodeLabels);
}

/** One for each of the rule's ports that the packet matches. */
export function claimsOf(
  { index, rule }: NumberedRule,
  requires: readonly Requirement[],
  remote: Party,
  protocol: number,
  port: number,
  named: readonly NamedPort[],
): (Claim & { action: 'allow' | 'deny' })[] {
  const { peers, ports, mode, action } = rule;
  const further = action === 'allow' ? requires : [];
  const matching = peers === 'any' ? [] : peers.filter((peer) => matchesPeer(peer, remote, further));
  if (peers !== 'any' && matching.length === 0) return [];
  const namesPeer = matching.some((peer) => peer.kind !== 'entity' || peer.entity !== 'all');
  const claim = { rule: index, action, mode, namesPeer, namesProtocol: true };
  if (ports === 'any') return [{ ...claim, namesProtocol: false, first: 0, last: 65_535 }];
  return ports
    .flatMap((match) => ranges(match, named))
    .filter((range) => range.protocol === protocol && range.first <= port && port <= range.last)
    .map(({ first, last }) => ({ ...claim, first, last }));
}

function matchesPeer(peer: Peer, remote: Party, requires: readonly Requirement[]): boolean {
  switch (peer.kind) {
    case 'workloads':
      if (remote.kind !== 'workload' || !selects(peer.selector, remote.labels)) return false;
      return requires.every((requirement) => holds(requirement, remote.labels));
    case 'cidr':
      return remote.kind === 'cidr' && cidrPeerMatches(peer, remote.node);
    case 'entity':
      return isEntity(peer.entity, remote);
    default:
      return peer satisfies never;
  }
}

function isEntity(entity: Entity, remote: Party): boolean {
  const outside = remote.kind === 'world' || remote.kind === 'cidr';
  switch (entity) {
    case 'all':
      return true;
    case 'none':
      return false;
    case 'cluster':
      return !outside;
    case 'world':
      return outside;
    case 'world-ipv4':
      return remote.kind === 'cidr' && cidrPeerMatches(WORLD_IPV4, remote.node);
    case 'world-ipv6':
      return remote.kind === 'cidr' && cidrPeerMatches(WORLD_IPV6, remote.node);
    case 'host':
    case 'remote-node':
      return remote.kind === entity;
    default:
      return entity satisfies never;
  }
}

function ranges(match: PortMatch, named: readonly NamedPort[]): { protocol: number; first: number; last: number }[] {
  if ('name' in match) {
    return named
      .filter(({ name, protocol }) => name === match.name && match.protocols.includes(protocol))
      .map(({ protocol, port }) => ({ protocol, first: port, last: port }));
  }
  if ('ports' in match) return [{ protocol: match.protocol, first: 0, last: 65_535 }];
  return [match];
}
