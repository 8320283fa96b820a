/**
 * Policies and identities to the kernel's policy entries. The kernel looks a packet up as (local, remote, protocol, port),
 * then with the port, protocol and port, and last the remote left open; the first entry found decides, none is a drop.
 */
import type { AuthType, Direction, PolicyEntry } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import {
  DEFAULT_ALLOW,
  DEFAULT_DENY,
  evaluate,
  namesPeer,
  type ResolvedRule,
  strongerOf,
  type Verdict,
} from './evaluate.ts';
import { type Policy, plainLabels, policyName, type Rule, type Selector, selects } from './policy.ts';

export type { Verdict } from './evaluate.ts';

/** What `explain` and the audit log say of a rule. */
export interface PolicyRule {
  readonly file: string;
  readonly line: number;
  /** "namespace/name", or the name alone of a clusterwide policy. */
  readonly policy: string;
  readonly direction: Direction;
  readonly description: string;
}

export interface Decision {
  /** As the sender's hook enforces it: its own policy's verdict with the stronger authentication of both sides. */
  readonly egress: Verdict;
  readonly ingress: Verdict;
  /** Of both hooks. */
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
  /** Index into rules; 0: none. */
  readonly rule: number;
}

export interface RequiredPair {
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
  readonly authType: Exclude<AuthType, 'none'>;
}

export interface CompiledPolicy {
  readonly entries: readonly PolicyEntry[];
  /** Index 0 is unused, so that 0 can mean "no rule". */
  readonly rules: readonly PolicyRule[];
  /** `from` opens a flow to `to`. Protocols and ports as in the kernel: a protocol without ports has port 0. */
  decide(from: SecurityIdentity, to: SecurityIdentity, protocol: number, port: number): Decision;
  /** Pairs of which at least one is local, that some traffic both sides allow needs a proof for. */
  requiredPairs(): readonly RequiredPair[];
  /** What traffic between the two, in either direction, needs. Empty: policy denies it all or requires no proof. */
  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly Exclude<AuthType, 'none'>[];
}

interface PortKey {
  readonly protocol: number;
  readonly port: number;
}

/** Identities below this are reserved (host, world, …): no policy selects them. */
const FIRST_WORKLOAD_IDENTITY = 256;

export function compilePolicy(
  policies: readonly Policy[],
  identities: readonly IdentityRow[],
  locals: readonly SecurityIdentity[],
): CompiledPolicy {
  const resolved = resolve(policies, identities);
  const entries = locals.flatMap((local) => [
    ...entriesOf(resolved, identities, local, 'egress'),
    ...entriesOf(resolved, identities, local, 'ingress'),
  ]);
  const authTypes = memoise((a, b) => [
    ...new Set([...authTypesOfFlows(resolved, a, b), ...authTypesOfFlows(resolved, b, a)]),
  ]);
  return {
    entries,
    rules: resolved.rules,
    decide: (from, to, protocol, port) => decide(resolved, from, to, protocol, port),
    requiredPairs: () =>
      locals.flatMap((local) =>
        identities.flatMap(({ identity: remote }) =>
          authTypes(local, remote).map((authType) => ({ local, remote, authType })),
        ),
      ),
    authTypesOf: authTypes,
  };
}

interface Resolved {
  readonly rules: readonly PolicyRule[];
  /** Rules that select the identity; undefined: no policy does, in this direction. */
  rulesOf(direction: Direction, identity: SecurityIdentity): readonly ResolvedRule[] | undefined;
  isKnown(identity: SecurityIdentity): boolean;
}

function resolve(policies: readonly Policy[], identities: readonly IdentityRow[]): Resolved {
  const labelled = indexLabels(identities);
  const known = new Set<number>(identities.map(({ identity }) => identity));
  const rules: PolicyRule[] = [{ file: '', line: 0, policy: '', direction: 'egress', description: '' }];
  const selected = { egress: new Map<number, ResolvedRule[]>(), ingress: new Map<number, ResolvedRule[]>() };
  for (const policy of policies) {
    for (const spec of policy.specs) {
      const subjects = identitiesOf([spec.subject], labelled);
      for (const rule of [...spec.ingress, ...spec.egress]) {
        const { file, line, direction } = rule;
        rules.push({ file, line, policy: policyName(policy), direction, description: spec.description });
        const resolvedRule = resolveRule(rule, rules.length - 1, labelled);
        for (const subject of subjects) {
          const list = selected[direction].get(subject);
          if (list === undefined) selected[direction].set(subject, [resolvedRule]);
          else list.push(resolvedRule);
        }
      }
    }
  }
  return {
    rules,
    rulesOf: (direction, identity) => selected[direction].get(identity),
    isKnown: (identity) => known.has(identity),
  };
}

interface Labelled {
  readonly all: readonly LabelledIdentity[];
  /** By "key=value". */
  readonly by: ReadonlyMap<string, readonly LabelledIdentity[]>;
}

interface LabelledIdentity {
  readonly identity: SecurityIdentity;
  readonly labels: Labels;
}

function indexLabels(identities: readonly IdentityRow[]): Labelled {
  const all = identities.map(({ identity, labels }) => ({ identity, labels: plainLabels(labels) }));
  const by = new Map<string, LabelledIdentity[]>();
  for (const row of all) {
    for (const [key, value] of Object.entries(row.labels)) {
      const list = by.get(`${key}=${value}`);
      if (list === undefined) by.set(`${key}=${value}`, [row]);
      else list.push(row);
    }
  }
  return { all, by };
}

function resolveRule(rule: Rule, index: number, labelled: Labelled): ResolvedRule {
  const peers = rule.peers === 'any' ? ('any' as const) : identitiesOf(rule.peers, labelled);
  return { index, peers, ports: rule.ports, mode: rule.mode };
}

function identitiesOf(selectors: readonly Selector[], labelled: Labelled): Set<SecurityIdentity> {
  const found = new Set<SecurityIdentity>();
  for (const selector of selectors) {
    const [first] = Object.entries(selector.labels);
    const candidates = first === undefined ? labelled.all : (labelled.by.get(first.join('=')) ?? []);
    for (const { identity, labels } of candidates) if (selects(selector, labels)) found.add(identity);
  }
  return found;
}

const OPPOSITE: Readonly<Record<Direction, Direction>> = { egress: 'ingress', ingress: 'egress' };

/** The verdict at one hook. Port 0 stands for the ports no rule names, a protocol likewise. */
function verdictAt(
  resolved: Resolved,
  direction: Direction,
  local: SecurityIdentity,
  remote: SecurityIdentity,
  at: PortKey,
) {
  const own = ownVerdict(resolved, direction, local, remote, at);
  const other = ownVerdict(resolved, OPPOSITE[direction], remote, local, at);
  return strongerOf(own, other);
}

function ownVerdict(
  resolved: Resolved,
  direction: Direction,
  local: SecurityIdentity,
  remote: SecurityIdentity | undefined,
  { protocol, port }: PortKey,
): Verdict {
  // A workload identity whose labels are not known cannot be selected by any policy: it must not pass as unrestricted.
  if (!resolved.isKnown(local)) return local < FIRST_WORKLOAD_IDENTITY ? DEFAULT_ALLOW : DEFAULT_DENY;
  return evaluate(resolved.rulesOf(direction, local), remote, protocol, port);
}

function decide(
  resolved: Resolved,
  from: SecurityIdentity,
  to: SecurityIdentity,
  protocol: number,
  port: number,
): Decision {
  const at = { protocol, port };
  const egress = verdictAt(resolved, 'egress', from, to, at);
  const ingress = verdictAt(resolved, 'ingress', to, from, at);
  const denied = egress.verdict === 'deny' ? egress : ingress;
  if (denied.verdict === 'deny') return { egress, ingress, verdict: 'deny', authType: 'none', rule: denied.rule };
  return { egress, ingress, verdict: 'allow', authType: egress.authType, rule: egress.rule || ingress.rule };
}

/** From the broadest key to the narrowest: each is written only where those before it would not give its verdict. */
function entriesOf(
  resolved: Resolved,
  identities: readonly IdentityRow[],
  local: SecurityIdentity,
  direction: Direction,
): PolicyEntry[] {
  if (!resolved.isKnown(local)) return []; // no entry: all is dropped
  const own = resolved.rulesOf(direction, local);
  const table = new Map<string, PolicyEntry>();
  const write = (remote: SecurityIdentity | 0, at: PortKey, wanted: Verdict) => {
    const found = lookupEntry((key) => table.get(key), remote, at);
    if (sameVerdict(found, wanted)) return;
    // A broader rule allows whatever a narrower entry stands for, so nothing narrower is ever a denial.
    if (wanted.verdict === 'deny') throw new Error('a denial below an allowance');
    table.set(tableKey(remote, at), { local, remote, direction, ...at, portBits: at.port === 0 ? 0 : 16, ...wanted });
  };
  for (const at of keysOf((own ?? []).filter((rule) => rule.peers === 'any'))) {
    write(0, at, ownVerdict(resolved, direction, local, undefined, at));
  }
  for (const { identity: remote } of identities) {
    const others = (resolved.rulesOf(OPPOSITE[direction], remote) ?? []).filter((rule) => namesPeer(rule, local));
    const mine = (own ?? []).filter((rule) => namesPeer(rule, remote));
    if (others.every((rule) => rule.mode === undefined) && mine.every((rule) => rule.peers === 'any')) continue;
    for (const at of keysOf([...mine, ...others])) write(remote, at, verdictAt(resolved, direction, local, remote, at));
  }
  return [...table.values()];
}

/** Every (protocol, port) the rules name, with its broader ones, broadest first. */
function keysOf(rules: readonly ResolvedRule[]): PortKey[] {
  const protocols = new Set<number>();
  const ports = new Map<number, PortKey>();
  for (const rule of rules) {
    for (const { protocol, port } of rule.ports === 'any' ? [] : rule.ports) {
      protocols.add(protocol);
      if (port !== 0) ports.set(protocol * 65_536 + port, { protocol, port });
    }
  }
  return [{ protocol: 0, port: 0 }, ...[...protocols].map((protocol) => ({ protocol, port: 0 })), ...ports.values()];
}

function tableKey(remote: SecurityIdentity | 0, { protocol, port }: PortKey): string {
  return `${remote} ${protocol} ${port}`;
}

/** The kernel's order. */
function lookupEntry<T>(get: (key: string) => T | undefined, remote: SecurityIdentity | 0, at: PortKey): T | undefined {
  for (const peer of remote === 0 ? ([0] as const) : ([remote, 0] as const)) {
    const found =
      get(tableKey(peer, at)) ??
      get(tableKey(peer, { protocol: at.protocol, port: 0 })) ??
      get(tableKey(peer, { protocol: 0, port: 0 }));
    if (found !== undefined) return found;
  }
  return undefined;
}

function sameVerdict(found: PolicyEntry | undefined, wanted: Verdict): boolean {
  const has = found ?? DEFAULT_DENY;
  if (has.verdict !== wanted.verdict) return false;
  return has.verdict === 'deny' || (has.authType === wanted.authType && has.rule === wanted.rule);
}

function authTypesOfFlows(
  resolved: Resolved,
  from: SecurityIdentity,
  to: SecurityIdentity,
): Exclude<AuthType, 'none'>[] {
  const egress = resolved.rulesOf('egress', from)?.filter((rule) => namesPeer(rule, to)) ?? [];
  const ingress = resolved.rulesOf('ingress', to)?.filter((rule) => namesPeer(rule, from)) ?? [];
  const rules = [...egress, ...ingress];
  if (rules.every((rule) => rule.mode === undefined || rule.mode === 'disabled')) return [];
  const found = new Set<Exclude<AuthType, 'none'>>();
  for (const { protocol, port } of keysOf(rules)) {
    const { verdict, authType } = decide(resolved, from, to, protocol, port);
    if (verdict === 'allow' && authType !== 'none') found.add(authType);
  }
  return [...found];
}

type AuthTypesOf = CompiledPolicy['authTypesOf'];

function memoise(compute: AuthTypesOf): AuthTypesOf {
  const cache = new Map<string, ReturnType<AuthTypesOf>>();
  return (a, b) => {
    const key = a < b ? `${a} ${b}` : `${b} ${a}`;
    let value = cache.get(key);
    if (value === undefined) {
      value = compute(a, b);
      if (cache.size < 1_000_000) cache.set(key, value);
    }
    return value;
  };
}
