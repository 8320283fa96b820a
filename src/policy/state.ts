/** Compiled policies with the identities and endpoints they were compiled for: what tables, answers and changes are made from. */
import type { Direction } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type SecurityIdentity } from '../model/ids.ts';
import { Behaviours } from './behaviour.ts';
import { type CidrPeer, type Cidrs, cidrsOf, isCidrIdentity } from './cidr.ts';
import { RemoteClasses, type Signatures, signatures } from './classes.ts';
import type { PolicyRule } from './compiled.ts';
import { type Hook, HookMaker } from './hooks.ts';
import { plainLabels } from './labels.ts';
import { LayeredMap } from './layered-map.ts';
import { checkSizes, MAX_ENTRIES, refuseEntries } from './limits.ts';
import { Matcher } from './matching.ts';
import { type NumberedSpec, numberRules } from './numbered.ts';
import { ruleOf } from './outcomes.ts';
import { type Profile, Profiles, workloadParty } from './profiles.ts';
import { EGRESS, INGRESS, type Rulebook, WAYS, type Way, writeRulebook } from './rulebook.ts';
import type { Policy } from './rules.ts';

/** What follows from the policies alone. */
export interface Plan {
  readonly specs: readonly NumberedSpec[];
  readonly rules: readonly PolicyRule[];
  readonly book: Rulebook;
  readonly cidrs: Cidrs;
  readonly nodeLabels: ReadonlyMap<string, string> | undefined;
  readonly profiles: Profiles;
  readonly signatures: Signatures;
  readonly matcher: Matcher;
  readonly behaviours: Behaviours;
  readonly hooks: HookMaker;
  readonly selectsHost: Readonly<Record<Direction, boolean>>;
}

export interface State {
  readonly plan: Plan;
  /** Workloads. */
  readonly rows: LayeredMap<SecurityIdentity, IdentityRow>;
  /** Everybody: workloads, reserved and CIDR identities. */
  readonly profiles: LayeredMap<SecurityIdentity, Profile>;
  /** As they were given. */
  readonly identities: readonly IdentityRow[];
  /** Those among them that are on this node. */
  readonly locals: ReadonlySet<SecurityIdentity>;
  readonly remotes: readonly [RemoteClasses, RemoteClasses];
  /** By the signature of the local class. */
  readonly hooks: readonly [ReadonlyMap<string, Hook>, ReadonlyMap<string, Hook>];
  /** Numbers of local classes that may be given next; the last is the lowest that was never given. */
  readonly freeLocals: readonly [readonly number[], readonly number[]];
}

const RESERVED = [
  [IDENTITY_HOST, { kind: 'host' }],
  [IDENTITY_WORLD, { kind: 'world' }],
  [IDENTITY_REMOTE_NODE, { kind: 'remote-node' }],
] as const;

/** Reserved numbers are not the identity table's to give. */
const FIRST_WORKLOAD_IDENTITY = 256;

export function isWorkloadIdentity(identity: number): boolean {
  return identity >= FIRST_WORKLOAD_IDENTITY && !isCidrIdentity(identity);
}

export function planOf(policies: readonly Policy[], labels: Labels | undefined): Plan {
  const { specs, rules } = numberRules(policies);
  const book = writeRulebook(specs);
  const cidrs = cidrsOf(book.selectors.flatMap((selector) => (selector.kind === 'cidr' ? [selector.peer] : [])));
  const nodeLabels = labels && plainLabels(labels);
  const profiles = new Profiles(book, nodeLabels);
  const matcher = new Matcher(book, rules.length);
  const behaviours = new Behaviours();
  const host = profiles.of({ kind: 'host' });
  return {
    specs,
    rules,
    book,
    cidrs,
    nodeLabels,
    profiles,
    signatures: signatures(book),
    matcher,
    behaviours,
    hooks: new HookMaker(book, rules, matcher, behaviours),
    selectsHost: { egress: host.groups[EGRESS].length > 0, ingress: host.groups[INGRESS].length > 0 },
  };
}

/** @throws CountersignError exhausted, naming the policy, if it does not fit into the kernel */
export function stateOf(plan: Plan, identities: readonly IdentityRow[], locals: readonly SecurityIdentity[]): State {
  const rows = new Map<SecurityIdentity, IdentityRow>();
  const profiles = new Map<SecurityIdentity, Profile>();
  for (const [identity, party] of RESERVED) profiles.set(identity, plan.profiles.of(party));
  for (const node of plan.cidrs.nodes) profiles.set(node.identity, plan.profiles.of({ kind: 'cidr', node }));
  checkSizes(identities.length, () => cidrsByRule(plan), plan.cidrs.nodes.length, plan.rules);
  for (const row of identities) {
    if (!isWorkloadIdentity(row.identity)) continue;
    rows.set(row.identity, row);
    profiles.set(row.identity, plan.profiles.of(workloadParty(row)));
  }
  const remotes = WAYS.map((way) => {
    const classes = new RemoteClasses(plan.book, way);
    for (const profile of profiles.values()) classes.enter(plan.signatures.remote(way, profile), profile);
    return classes;
  }) as [RemoteClasses, RemoteClasses];
  const here = localsAmong(plan, rows, locals);
  const limit = new EntryLimit(plan);
  const hooks = WAYS.map((way) => {
    const found = new Map<string, Hook>();
    for (const [signature, profile] of localProfiles(plan, way, here, profiles)) {
      const hook = plan.hooks.make(way, found.size + 1, profile, remotes[way]);
      limit.add(hook);
      found.set(signature, hook);
    }
    return found;
  }) as [Map<string, Hook>, Map<string, Hook>];
  return {
    plan,
    rows: LayeredMap.over(rows),
    profiles: LayeredMap.over(profiles),
    identities,
    locals: here,
    remotes,
    hooks,
    freeLocals: [[hooks[0].size + 1], [hooks[1].size + 1]],
  };
}

/** Without those that nobody knows: they have no class, and all their packets drop. */
export function localsAmong(
  plan: Plan,
  rows: Pick<ReadonlyMap<SecurityIdentity, IdentityRow>, 'has'>,
  locals: readonly SecurityIdentity[],
): Set<SecurityIdentity> {
  const here = new Set(locals.filter((identity) => rows.has(identity) || identity === IDENTITY_HOST));
  if (plan.nodeLabels !== undefined) here.add(IDENTITY_HOST);
  return here;
}

/** The classes of local endpoints, by signature, each with the profile of one of them. */
export function localProfiles(
  plan: Plan,
  way: Way,
  locals: ReadonlySet<SecurityIdentity>,
  profiles: { get(identity: SecurityIdentity): Profile | undefined },
): Map<string, Profile> {
  const found = new Map<string, Profile>();
  for (const identity of locals) {
    const profile = profiles.get(identity)!;
    found.set(plan.signatures.local(way, profile), profile);
  }
  return found;
}

/** Counts entries while hooks are made, so that what cannot fit is refused before it fills the memory. */
export class EntryLimit {
  readonly #plan: Plan;
  readonly #hooks: Hook[] = [];
  #count = 0;

  constructor(plan: Plan) {
    this.#plan = plan;
  }

  add(hook: Hook): void {
    this.#hooks.push(hook);
    this.#count += hook.entryCount;
    if (this.#count > MAX_ENTRIES) refuseEntries(entriesByRule(this.#plan, this.#hooks), this.#plan.rules);
  }
}

function entriesByRule({ hooks: maker, behaviours }: Plan, hooks: readonly Hook[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const hook of hooks) {
    const encodings = [maker.usualEncoding(hook), ...[...hook.others.values()].map((one) => maker.encoding(hook, one))];
    for (const { entries } of encodings) {
      for (const { value } of entries) {
        const rule = ruleOf(behaviours.values[value]!.enforced);
        counts.set(rule, (counts.get(rule) ?? 0) + 1);
      }
    }
  }
  return counts;
}

function cidrsByRule({ specs }: Plan): Map<number, number> {
  const size = ({ except }: CidrPeer) => 1 + except.length;
  const counts = new Map<number, number>();
  for (const { rules } of specs) {
    for (const { index, rule } of rules) {
      const peers = rule.peers === 'any' ? [] : rule.peers;
      const count = peers.reduce((sum, peer) => sum + (peer.kind === 'cidr' ? size(peer) : 0), 0);
      if (count > 0) counts.set(index, count);
    }
  }
  return counts;
}
