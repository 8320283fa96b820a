/** A compiled state as the datapath's tables. */
import {
  AUTH_TYPE_CODE,
  type AuthType,
  type PolicyClassRow,
  type PolicyEntry,
  type PolicyTables,
  type PolicyVerdict,
} from '../model/datapath.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { Behaviour, Encoding } from './behaviour.ts';
import type { Hook } from './hooks.ts';
import { authCodeOf, isDeny, type Packed, ruleOf } from './outcomes.ts';
import { DIRECTIONS, EGRESS, INGRESS, type Way } from './rulebook.ts';
import type { Plan, State } from './state.ts';

export const AUTH_TYPES = Object.fromEntries(
  Object.entries(AUTH_TYPE_CODE).map(([authType, code]) => [code, authType]),
) as Readonly<Record<number, AuthType>>;

const NONE = { egress: 0, ingress: 0 } as const;

export function tablesOf(state: State): PolicyTables {
  const rows = new RowMaker(state);
  return {
    classes: [...state.profiles.keys()].map((identity) => rows.row(identity)),
    entries: state.hooks.flatMap((hooks) => [...hooks.values()].flatMap((hook) => entriesOf(state.plan, hook))),
    cidrs: state.plan.cidrs.identities,
    host: state.plan.selectsHost,
  };
}

/** All of one hook. */
export function entriesOf(plan: Plan, hook: Hook): PolicyEntry[] {
  const entries = entriesFor(plan, hook, 0, plan.hooks.usualEncoding(hook));
  for (const [remote, behaviour] of hook.others) {
    for (const entry of otherEntries(plan, hook, remote, behaviour)) entries.push(entry);
  }
  return entries;
}

export function otherEntries(plan: Plan, hook: Hook, remote: number, behaviour: Behaviour): PolicyEntry[] {
  return entriesFor(plan, hook, remote, plan.hooks.encoding(hook, behaviour));
}

function entriesFor({ behaviours }: Plan, hook: Hook, remote: number, { entries }: Encoding): PolicyEntry[] {
  const { local, way } = hook;
  const direction = DIRECTIONS[way];
  return entries.map(({ protocol, port, portBits, value }) => {
    const { enforced, observed } = behaviours.values[value]!;
    const entry = { local, remote, direction, protocol, port, portBits, ...verdictOf(enforced) };
    return observed === undefined ? entry : { ...entry, observed: verdictOf(observed) };
  });
}

function verdictOf(packed: Packed): PolicyVerdict {
  return {
    verdict: isDeny(packed) ? 'deny' : 'allow',
    authType: AUTH_TYPES[authCodeOf(packed)]!,
    rule: ruleOf(packed),
  };
}

/** Rows of one state. What many rows have in common is one object. */
export class RowMaker {
  readonly #state: State;
  readonly #remotes = new Map<number, PolicyClassRow['remote']>();

  constructor(state: State) {
    this.#state = state;
  }

  row(identity: SecurityIdentity): PolicyClassRow {
    const { plan, profiles, locals, hooks, remotes } = this.#state;
    const profile = profiles.get(identity)!;
    let remote = this.#remotes.get(profile.number);
    if (remote === undefined) {
      const at = (way: Way) => remotes[way].get(plan.signatures.remote(way, profile))!.number;
      remote = { egress: at(EGRESS), ingress: at(INGRESS) };
      this.#remotes.set(profile.number, remote);
    }
    if (!locals.has(identity)) return { identity, local: NONE, remote, portBits: NONE };
    const at = (way: Way) => hooks[way].get(plan.signatures.local(way, profile))!;
    const [egress, ingress] = [at(EGRESS), at(INGRESS)];
    return {
      identity,
      local: { egress: egress.local, ingress: ingress.local },
      remote,
      portBits: { egress: egress.portBits, ingress: ingress.portBits },
    };
  }
}
