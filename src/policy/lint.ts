/** What is allowed to be written and hardly meant: rules without effect, found without knowing any workload. */

import { STRENGTH, TEXT_OF_MODE } from './auth-mode.ts';
import { contradiction, subjectContains, trafficContains } from './contains.ts';
import type { Peer, Policy, PolicySpec, PolicyWarning, Requirement, Rule, Selector } from './rules.ts';

/** A rule with all that stands around it. */
interface Placed {
  readonly rule: Rule;
  readonly spec: PolicySpec;
  readonly policy: Policy;
}

/** By file and line. */
export function lintPolicies(policies: readonly Policy[]): PolicyWarning[] {
  const placed = policies.flatMap((policy) =>
    policy.specs.flatMap((spec) => spec.rules.map((rule): Placed => ({ rule, spec, policy }))),
  );
  const warnings = [
    ...policies.flatMap(unmeetableSubjects),
    ...placed.flatMap(unmeetablePeers),
    ...placed.flatMap(allowsNothing),
    ...[...bySubject(placed).values()].flatMap((alike) => [
      ...alike.flatMap((one, i) => repeats(one, alike.slice(0, i))),
      ...alike.flatMap((one) => beatenMode(one, alike)),
    ]),
    ...dead(placed),
    ...placed.flatMap((one) => idleMode(one, placed)),
  ];
  return warnings.sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : a.line - b.line));
}

function warn({ rule }: Placed, message: string): PolicyWarning[] {
  return [{ file: rule.file, line: rule.line, message: `${rule.path}: ${message}` }];
}

const place = ({ rule }: Placed) => `${rule.file}:${rule.line} (${rule.path})`;

function unmeetableSubjects(policy: Policy): PolicyWarning[] {
  return policy.specs.flatMap(({ line, subject }) => {
    const message = unmeetable(subject.selector);
    return message === undefined ? [] : [{ file: policy.file, line, message: `selects nobody: ${message}` }];
  });
}

function unmeetablePeers(placed: Placed): PolicyWarning[] {
  const { peers } = placed.rule;
  if (peers === 'any') return [];
  return peers.flatMap((peer) => {
    const message = peer.kind === 'workloads' ? unmeetable(peer.selector) : undefined;
    return message === undefined ? [] : warn(placed, `one of its peers is nobody: ${message}`);
  });
}

function unmeetable(selector: Selector): string | undefined {
  const found = contradiction(selector);
  if (found === undefined) return undefined;
  return `no workload has ${found.map(requirementText).join(' and ')}; correct the selector`;
}

export function requirementText({ key, operator, values }: Requirement): string {
  if (operator === 'In' && values.length === 1) return `${key}=${values[0]}`;
  return values.length === 0 ? `${key} ${operator}` : `${key} ${operator} (${values.join(', ')})`;
}

/** An empty rule alone is how default deny is written; beside others it does nothing. */
function allowsNothing(placed: Placed): PolicyWarning[] {
  const { rule, spec } = placed;
  if (rule.action === 'deny') return []; // the grammar tells of these
  if (rule.ports !== 'any' && rule.ports.length === 0)
    return warn(placed, 'allows nothing, because it names no port; name one, or remove toPorts');
  if (rule.peers === 'any') return [];
  if (rule.peers.length > 0) {
    const nobody = rule.peers.every((peer) => peer.kind === 'entity' && peer.entity === 'none');
    return nobody ? warn(placed, 'allows nothing, because none is nobody; name others, or write {}') : [];
  }
  const others = spec.rules.some((r) => r !== rule && r.direction === rule.direction && r.action === 'allow');
  if (!others || spec.requires[rule.direction].length > 0) return [];
  return warn(placed, 'allows nothing, and the rules beside it deny by default already; remove it');
}

/** Those about the same workloads or nodes together, so that not every rule is held against every other. */
function bySubject(placed: readonly Placed[]): Map<string, Placed[]> {
  const groups = new Map<string, Placed[]>();
  for (const one of placed) {
    const { kind, selector } = one.spec.subject;
    const asked = selector.requirements.map(({ key, operator, values }) => `${key} ${operator} ${[...values].sort()}`);
    const key = JSON.stringify([kind, [...new Set(asked)].sort(), one.rule.direction]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [one]);
    else group.push(one);
  }
  return groups;
}

/** Of the same subject. */
const isSame = (a: Placed, b: Placed): boolean =>
  a.rule.action === b.rule.action &&
  a.policy.enforcement === b.policy.enforcement &&
  trafficContains(a.rule, b.rule) &&
  trafficContains(b.rule, a.rule);

const isEmpty = ({ rule }: Placed): boolean => rule.peers.length === 0 || rule.ports.length === 0;

function repeats(one: Placed, before: readonly Placed[]): PolicyWarning[] {
  if (isEmpty(one)) return [];
  const first = before.find((other) => other.rule.mode === one.rule.mode && isSame(one, other));
  return first === undefined ? [] : warn(one, `says the same as ${place(first)}; remove one of them`);
}

/** What one rule allows another denies, all of it: deny beats allow. */
function dead(placed: readonly Placed[]): PolicyWarning[] {
  const denies = placed.filter(({ rule }) => rule.action === 'deny');
  return placed.flatMap((one) => {
    if (one.rule.action !== 'allow' || isEmpty(one)) return [];
    const deny = denies.find(
      (other) =>
        other.rule.direction === one.rule.direction &&
        (other.policy.enforcement === 'enforce' || one.policy.enforcement === 'observe') &&
        subjectContains(other.spec.subject, one.spec.subject) &&
        trafficContains(other.rule, one.rule),
    );
    return deny === undefined ? [] : warn(one, `can never allow: ${place(deny)} denies all of it; remove one of them`);
  });
}

function beatenMode(one: Placed, alike: readonly Placed[]): PolicyWarning[] {
  const { mode } = one.rule;
  if (mode === undefined || isEmpty(one)) return [];
  const stronger = alike.find(
    (other) => other.rule.mode !== undefined && STRENGTH[other.rule.mode] > STRENGTH[mode] && isSame(one, other),
  );
  if (stronger === undefined) return [];
  const said = `${place(stronger)} asks for ${TEXT_OF_MODE[stronger.rule.mode!]} on the same traffic, and the stronger holds`;
  return warn(one, `authentication.mode ${TEXT_OF_MODE[mode]} has no effect: ${said}; keep one of them`);
}

function idleMode(one: Placed, all: readonly Placed[]): PolicyWarning[] {
  const { mode, direction, peers } = one.rule;
  if (isEmpty(one)) return [];
  const asks = ({ rule }: Placed) =>
    rule.direction === direction && rule.mode !== undefined && rule.mode !== 'disabled';
  if (mode === 'disabled' && !all.some(asks)) {
    const said = `no other ${direction} rule asks for authentication`;
    return warn(one, `authentication.mode disabled has no effect: ${said}; remove it`);
  }
  const demands = mode === 'required' || mode === 'required-connection';
  if (demands && one.spec.subject.kind === 'nodes') {
    return warn(one, 'authentication.mode required is never met: a node has no SVID to prove itself with; remove it');
  }
  if (demands && peers !== 'any' && peers.every(cannotProve)) {
    return warn(one, 'authentication.mode required is never met: only workloads can prove who they are; remove it');
  }
  return [];
}

function cannotProve(peer: Peer): boolean {
  return peer.kind === 'cidr' || (peer.kind === 'entity' && peer.entity !== 'all' && peer.entity !== 'cluster');
}
