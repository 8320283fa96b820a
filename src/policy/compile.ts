/**
 * Policies, identities and endpoints to the kernel's tables. The kernel asks for the classes of the two ends, then for the
 * remote's class before any, the longest port prefix first, any protocol last; the first entry found decides, none is a drop.
 */
import { AUTH_TYPE_CODE, type PolicyTables } from '../model/datapath.ts';
import type { IdentityRow } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { CompiledPolicy, CompileOptions, Recompiled, RequiredAuthType } from './compiled.ts';
import { createJudge } from './evaluate.ts';
import { asks } from './matching.ts';
import { proofsBetween } from './outcomes.ts';
import { type Profile, workloadParty } from './profiles.ts';
import { change } from './recompile.ts';
import { EGRESS, INGRESS, WAYS } from './rulebook.ts';
import type { Policy } from './rules.ts';
import { isWorkloadIdentity, type Plan, planOf, type State, stateOf } from './state.ts';
import { AUTH_TYPES, tablesOf } from './tables.ts';

export type * from './compiled.ts';

/**
 * `locals`: the identities of this node's endpoints.
 * @throws CountersignError exhausted, naming the policy, if it does not fit into the kernel's maps
 */
export function compilePolicy(
  policies: readonly Policy[],
  identities: readonly IdentityRow[],
  locals: readonly SecurityIdentity[],
  options: CompileOptions = {},
): CompiledPolicy {
  return compiledFrom(stateOf(planOf(policies, options.nodeLabels), identities, locals));
}

/**
 * The same policies for other identities or endpoints. `previous` stays as it was.
 * @throws CountersignError exhausted
 */
export function recompile(
  previous: CompiledPolicy,
  identities: readonly IdentityRow[],
  locals: readonly SecurityIdentity[],
): Recompiled {
  const before = states.get(previous);
  if (before === undefined) throw new TypeError('this policy was not compiled here');
  const { state, delta } = change(before, identities, locals);
  if (state.profiles === before.profiles && state.locals === before.locals) {
    states.set(previous, state);
    return { compiled: previous, delta };
  }
  return { compiled: compiledFrom(state), delta };
}

const states = new WeakMap<CompiledPolicy, State>();

const NOTHING: readonly RequiredAuthType[] = [];
const MAX_REMEMBERED_PAIRS = 200_000;

function compiledFrom(state: State): CompiledPolicy {
  const { plan, rows, profiles, locals } = state;
  const judge = createJudge({
    specs: plan.specs,
    cidrs: plan.cidrs,
    nodeLabels: plan.nodeLabels,
    workload(identity) {
      const row = rows.get(identity);
      return row && workloadParty(row);
    },
  });
  const pairs = new Map<number, readonly RequiredAuthType[]>();
  let tables: WeakRef<PolicyTables> | undefined;

  function authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly RequiredAuthType[] {
    const one = profiles.get(a);
    const two = profiles.get(b);
    if (one === undefined || two === undefined) return NOTHING;
    const key = Math.min(one.number, two.number) * 2 ** 26 + Math.max(one.number, two.number);
    let found = pairs.get(key);
    if (found === undefined) {
      found = typesIn(proofsOf(plan, one, two) | proofsOf(plan, two, one));
      if (pairs.size >= MAX_REMEMBERED_PAIRS) pairs.clear();
      pairs.set(key, found);
    }
    return found;
  }

  const compiled: CompiledPolicy = {
    get tables() {
      let made = tables?.deref();
      if (made === undefined) {
        made = tablesOf(state);
        tables = new WeakRef(made);
      }
      return made;
    },
    get entryCount() {
      const hooks = WAYS.flatMap((way) => [...state.hooks[way].values()]);
      return hooks.reduce((sum, { entryCount }) => sum + entryCount, 0);
    },
    rules: plan.rules,
    selectsHost: plan.selectsHost,
    decide: judge.decide,
    authTypesOf,
    requiredPeers: (authType) => requiredPeers(state, authType),
    *requiredPairs() {
      for (const local of locals) {
        for (const remote of rows.keys()) {
          for (const authType of authTypesOf(local, remote)) yield { local, remote, authType };
        }
      }
    },
    identityOfAddress: plan.cidrs.identityOfAddress,
  };
  states.set(compiled, state);
  return compiled;
}

/** What flows from one to the other need. */
function proofsOf({ matcher }: Plan, from: Profile, to: Profile): number {
  const egress = matcher.rulesFor(EGRESS, from, to).inForce;
  const ingress = matcher.rulesFor(INGRESS, to, from).inForce;
  if (!egress.some(asks) && !ingress.some(asks)) return 0;
  const denies = (way: typeof EGRESS | typeof INGRESS, profile: Profile) =>
    matcher.groupsOf(way, profile).some(({ defaultDeny }) => defaultDeny[0]);
  return proofsBetween(
    { own: egress, defaultDeny: denies(EGRESS, from) },
    { own: ingress, defaultDeny: denies(INGRESS, to) },
    to.ports,
  );
}

function typesIn(proofs: number): readonly RequiredAuthType[] {
  if (proofs === 0) return NOTHING;
  return Object.entries(AUTH_TYPES).flatMap(([code, authType]) =>
    (proofs >> Number(code)) & 1 && authType !== 'none' ? [authType] : [],
  );
}

function requiredPeers({ plan, hooks, remotes, profiles }: State, authType: RequiredAuthType): SecurityIdentity[] {
  const mask = 1 << AUTH_TYPE_CODE[authType];
  const needed = WAYS.map((way) => {
    const classes = new Set<number>();
    for (const hook of hooks[way].values()) {
      for (const [number, { proofs }] of hook.others) if ((proofs & mask) !== 0) classes.add(number);
      if ((hook.usual.proofs & mask) === 0 || classes.size === remotes[way].count) continue;
      for (const { number } of remotes[way].all()) if (!hook.others.has(number)) classes.add(number);
    }
    return classes;
  });
  const byProfile: boolean[] = [];
  const isNeeded = (profile: Profile) =>
    WAYS.some((way) => needed[way]!.has(remotes[way].get(plan.signatures.remote(way, profile))!.number));
  const found: SecurityIdentity[] = [];
  for (const [identity, profile] of profiles.entries()) {
    if (!isWorkloadIdentity(identity)) continue;
    byProfile[profile.number] ??= isNeeded(profile);
    if (byProfile[profile.number]) found.push(identity);
  }
  return found;
}
