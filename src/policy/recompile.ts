/**
 * Another set of identities or endpoints under the same policies, as the writes that lead there. What a pair of classes means
 * never changes: identities move between classes, classes come with all their entries and go with them.
 */
import type { PolicyClassRow, PolicyDelta, PolicyEntry, PolicyEntryKey } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { NOBODY, type RemoteClass, RemoteClasses } from './classes.ts';
import type { Hook } from './hooks.ts';
import { type Profile, workloadParty } from './profiles.ts';
import { DIRECTIONS, WAYS, type Way } from './rulebook.ts';
import { EntryLimit, isWorkloadIdentity, localProfiles, localsAmong, type State } from './state.ts';
import { entriesOf, otherEntries, RowMaker } from './tables.ts';

export interface Changed {
  readonly state: State;
  readonly delta: PolicyDelta;
}

const NO_DELTA: PolicyDelta = { putEntries: [], putClasses: [], deleteClasses: [], deleteEntries: [] };

/** @throws CountersignError exhausted; `before` is still good */
export function change(
  before: State,
  identities: readonly IdentityRow[],
  locals: readonly SecurityIdentity[],
): Changed {
  const { plan } = before;
  const moves = movesOf(before, identities);
  const rows = moves.length === 0 ? before.rows : before.rows.with(moves.map(({ identity, row }) => [identity, row]));
  const profiles =
    moves.length === 0
      ? before.profiles
      : before.profiles.with(moves.map(({ identity, profile }) => [identity, profile]));
  const here = localsAmong(plan, rows, locals);
  const sameLocals = here.size === before.locals.size && [...here].every((identity) => before.locals.has(identity));
  if (moves.length === 0 && sameLocals) return { state: { ...before, identities }, delta: NO_DELTA };

  const ways = WAYS.map((way) => changeWay(before, way, moves, here, profiles));
  const [egress, ingress] = ways as [WayChange, WayChange];
  const state: State = {
    plan,
    rows,
    profiles,
    identities,
    locals: here,
    remotes: [egress.remotes, ingress.remotes],
    hooks: [egress.hooks, ingress.hooks],
    freeLocals: [egress.freeLocals, ingress.freeLocals],
  };
  const limit = new EntryLimit(plan);
  for (const { hooks } of ways) for (const hook of hooks.values()) limit.add(hook);
  return {
    state,
    delta: {
      putEntries: ways.flatMap(({ put }) => put),
      ...rowWrites(before, state, moves),
      deleteEntries: ways.flatMap(({ drop }) => drop),
    },
  };
}

/** An identity that is new, gone (no row), or has other labels or ports. */
interface Move {
  readonly identity: SecurityIdentity;
  readonly row: IdentityRow | undefined;
  readonly profile: Profile | undefined;
}

/** Most rows are the same objects at the same place, from the front or from the back: only what lies between is looked at. */
function movesOf(before: State, identities: readonly IdentityRow[]): Move[] {
  const old = before.identities;
  let front = 0;
  while (front < old.length && front < identities.length && old[front] === identities[front]) front++;
  let back = 0;
  const most = Math.min(old.length, identities.length) - front;
  while (back < most && old[old.length - 1 - back] === identities[identities.length - 1 - back]) back++;
  const moves = new Map<SecurityIdentity, Move>();
  for (let i = front; i < old.length - back; i++) {
    const { identity } = old[i]!;
    if (before.rows.has(identity)) moves.set(identity, { identity, row: undefined, profile: undefined });
  }
  for (let i = front; i < identities.length - back; i++) {
    const row = identities[i]!;
    const { identity } = row;
    if (!isWorkloadIdentity(identity)) continue;
    const known = before.rows.get(identity);
    if (known !== undefined && isSame(known, row)) moves.delete(identity);
    else moves.set(identity, { identity, row, profile: before.plan.profiles.of(workloadParty(row)) });
  }
  return [...moves.values()];
}

/** As far as policy looks. */
function isSame(a: IdentityRow, b: IdentityRow): boolean {
  if (a === b) return true;
  return hasSameLabels(a.labels, b.labels) && JSON.stringify(a.ports ?? []) === JSON.stringify(b.ports ?? []);
}

function hasSameLabels(a: Labels, b: Labels): boolean {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && a[key] === b[key]);
}

interface WayChange {
  readonly remotes: RemoteClasses;
  readonly hooks: ReadonlyMap<string, Hook>;
  readonly freeLocals: readonly number[];
  readonly put: readonly PolicyEntry[];
  readonly drop: readonly PolicyEntryKey[];
}

function changeWay(
  before: State,
  way: Way,
  moves: readonly Move[],
  here: ReadonlySet<SecurityIdentity>,
  profiles: State['profiles'],
): WayChange {
  const { plan } = before;
  const maker = plan.hooks;
  const { remotes, come, gone } = changeRemotes(before, way, moves);
  const put: PolicyEntry[] = [];
  const drop: PolicyEntryKey[] = [];
  const hooks = new Map<string, Hook>();
  const free = [...before.freeLocals[way]];
  const wanted = localProfiles(plan, way, here, profiles);
  for (const [signature, profile] of wanted) {
    const known = before.hooks[way].get(signature);
    if (known === undefined) {
      const number = free.pop()!;
      if (free.length === 0) free.push(number + 1);
      const made = maker.make(way, number, profile, remotes);
      put.push(...entriesOf(plan, made));
      hooks.set(signature, made);
      continue;
    }
    const adapted = come.length + gone.length === 0 ? known : maker.adapt(known, gone, come);
    hooks.set(signature, adapted);
    for (const { number } of come) {
      const behaviour = adapted.others.get(number);
      if (behaviour !== undefined) put.push(...otherEntries(plan, adapted, number, behaviour));
    }
    for (const { number } of gone) {
      const behaviour = known.others.get(number);
      if (behaviour !== undefined) drop.push(...otherEntries(plan, known, number, behaviour));
    }
  }
  for (const [signature, hook] of before.hooks[way]) {
    if (wanted.has(signature)) continue;
    drop.push(...entriesOf(plan, hook));
    free.push(hook.local);
  }
  return { remotes, hooks, freeLocals: free, put, drop };
}

function changeRemotes(before: State, way: Way, moves: readonly Move[]) {
  const { plan } = before;
  const come: RemoteClass[] = [];
  const gone: RemoteClass[] = [];
  const left = new Set<string>();
  const entered: [string, Profile][] = [];
  for (const { identity, profile } of moves) {
    const old = before.profiles.get(identity);
    const from = old && plan.signatures.remote(way, old);
    const to = profile && plan.signatures.remote(way, profile);
    if (from === to) continue;
    if (from !== undefined) left.add(`${from}\n${identity}`);
    if (to !== undefined) entered.push([to, profile!]);
  }
  if (left.size === 0 && entered.length === 0) return { remotes: before.remotes[way], come, gone };
  const remotes = new RemoteClasses(plan.book, way, before.remotes[way]);
  for (const [signature, profile] of entered) {
    const made = remotes.enter(signature, profile);
    if (made !== undefined) come.push(made);
  }
  const signatures = [...left].map((key) => key.slice(0, key.lastIndexOf('\n')));
  for (const signature of signatures) remotes.leave(signature);
  for (const signature of new Set(signatures)) {
    const swept = remotes.sweep(signature);
    if (swept !== undefined) gone.push(swept);
  }
  return { remotes, come, gone };
}

type RowWrites = Pick<PolicyDelta, 'putClasses' | 'deleteClasses'>;

/**
 * A packet meets the classes of two identities. While several change, a pair of one's old and another's new class might be
 * one that the policy never saw together: then all of them are nobody on their way.
 */
function rowWrites(before: State, after: State, moves: readonly Move[]): RowWrites {
  const rowsBefore = new RowMaker(before);
  const rowsAfter = new RowMaker(after);
  const concerned = new Set([
    ...moves.map(({ identity }) => identity),
    ...[...before.locals].filter((identity) => !after.locals.has(identity)),
    ...[...after.locals].filter((identity) => !before.locals.has(identity)),
  ]);
  const removed: SecurityIdentity[] = [];
  const added: PolicyClassRow[] = [];
  const moved: { readonly old: PolicyClassRow; readonly row: PolicyClassRow }[] = [];
  for (const identity of concerned) {
    const old = before.profiles.has(identity) ? rowsBefore.row(identity) : undefined;
    const row = after.profiles.has(identity) ? rowsAfter.row(identity) : undefined;
    if (row === undefined) removed.push(identity);
    else if (old === undefined) added.push(row);
    else if (!isSameRow(old, row)) moved.push({ old, row });
  }
  const putClasses: PolicyClassRow[] = [];
  // First the port lengths that entries of new remote classes use: with more lengths nothing else is found.
  for (const identity of hasGrown(before, after) ? before.locals : []) {
    if (concerned.has(identity) && !after.locals.has(identity)) continue;
    const old = rowsBefore.row(identity);
    const grown = withPortBits(before, after, old, identity);
    if (grown !== old) putClasses.push(grown);
  }
  const changes = [
    ...moved.map(({ old, row }) => ({ old, row })),
    ...removed.map((identity) => ({ old: rowsBefore.row(identity), row: undefined })),
  ];
  if (mayMix(changes)) for (const { old } of changes) putClasses.push(nobody(old.identity));
  else if (added.length > 0) for (const identity of removed) putClasses.push(nobody(identity));
  putClasses.push(...moved.map(({ row }) => row), ...added);
  return { putClasses, deleteClasses: removed };
}

function hasGrown(before: State, after: State): boolean {
  return WAYS.some((way) => {
    for (const [signature, { portBits }] of after.hooks[way]) {
      const known = before.hooks[way].get(signature);
      if (known !== undefined && known.portBits !== portBits) return true;
    }
    return false;
  });
}

/** The row as it was, with the lengths that its classes use now. */
function withPortBits(before: State, after: State, old: PolicyClassRow, identity: SecurityIdentity): PolicyClassRow {
  const { plan } = before;
  const profile = before.profiles.get(identity)!;
  const bits = WAYS.map((way) => {
    const hook = after.hooks[way].get(plan.signatures.local(way, profile));
    return hook === undefined ? old.portBits[DIRECTIONS[way]] : hook.portBits;
  });
  const [egress, ingress] = bits as [number, number];
  return egress === old.portBits.egress && ingress === old.portBits.ingress
    ? old
    : { ...old, portBits: { egress, ingress } };
}

function mayMix(changes: readonly { old: PolicyClassRow; row: PolicyClassRow | undefined }[]): boolean {
  return DIRECTIONS.some((direction) => {
    const differs = (role: 'local' | 'remote') =>
      changes.filter(({ old, row }) => row === undefined || row[role][direction] !== old[role][direction]);
    const [locals, remotes] = [differs('local'), differs('remote')];
    return locals.some((a) => remotes.some((b) => a !== b && (a.row !== undefined || b.row !== undefined)));
  });
}

function nobody(identity: SecurityIdentity): PolicyClassRow {
  const none = { egress: 0, ingress: 0 };
  return { identity, local: none, remote: { egress: NOBODY, ingress: NOBODY }, portBits: none };
}

function isSameRow(a: PolicyClassRow, b: PolicyClassRow): boolean {
  return DIRECTIONS.every(
    (way) => a.local[way] === b.local[way] && a.remote[way] === b.remote[way] && a.portBits[way] === b.portBits[way],
  );
}
