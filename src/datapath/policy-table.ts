/** The compiled policy in the kernel: two halves, of which one is in force. A change is seen whole or not at all. */
import {
  AUTH_TYPE_CODE,
  type Direction,
  type PolicyClass,
  type PolicyClassRow,
  type PolicyDelta,
  type PolicyEntry,
  type PolicyEntryKey,
  type PolicyTables,
  type PolicyVerdict,
} from '../model/datapath.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { authTypeOf } from './auth-table.ts';
import { ClassTable } from './class-table.ts';
import type { ConfigWriter } from './config.ts';
import {
  CFG_HOST_EGRESS,
  CFG_HOST_INGRESS,
  EGRESS,
  INGRESS,
  POLICY_ALLOW,
  POLICY_DENY,
  policyKeyStruct,
} from './layout.ts';
import type { DatapathMaps } from './maps.ts';
import { type PrefixChange, planPrefixChange } from './policy-change.ts';
import { type PrefixEntry, PrefixTable } from './prefix-table.ts';

/** How long the half that was in force stays readable for programs that have already begun. They run for microseconds. */
const retireAfterMs = 20;

const slotOffset = policyKeyStruct.members.find(({ name }) => name === 'slot')!.offset;
const none = { egress: 0, ingress: 0 };

interface Retiring {
  readonly slot: number;
  /** Of the half in force: class rows that only the change needed. */
  readonly guests: readonly SecurityIdentity[];
  readonly timer: NodeJS.Timeout;
}

export class PolicyTable {
  readonly #maps: DatapathMaps;
  readonly #config: ConfigWriter;
  readonly #classes: ClassTable;
  readonly #prefixes: PrefixTable;
  #retiring: Retiring | undefined;
  /** Local classes, by direction, of which an entry asks for a proof. A hint for the kernel: after a restart there is none. */
  #asking = new Set<string>();

  constructor(maps: DatapathMaps, config: ConfigWriter) {
    this.#maps = maps;
    this.#config = config;
    this.#classes = new ClassTable(maps, config.current.policy_slot);
    this.#prefixes = new PrefixTable(maps, config);
    this.#clear(1 - config.current.policy_slot); // what a killed agent left
  }

  /**
   * Puts these in force instead of all earlier ones: classes, entries and CIDR identities together.
   * @throws Error E2BIG or ENOSPC when a map is full; the policy in force then stays as it is.
   */
  set(tables: PolicyTables): void {
    this.#finishRetiring();
    const inForce = this.#config.current.policy_slot;
    const slot = 1 - inForce;
    const classes = new Map(tables.classes.map((row) => [row.identity, row.remote]));
    const before = this.#prefixes.inForce;
    const after = this.#prefixes.withCidrs(tables.cidrs);
    const asking = askingOf(tables.entries);
    const change = planPrefixChange(
      before,
      after,
      (identity) => this.#classes.row(identity)?.remote,
      (identity) => classes.get(identity),
    );
    try {
      this.#maps.cs_policy.putBatch(tables.entries.map((entry) => [keyOf(entry, slot), kernelValueOf(entry)] as const));
      this.#classes.put(slot, [...tables.classes, ...rowsOf(change.guestsOfNew)], asksIn(asking));
      this.#classes.put(inForce, rowsOf(change.guestsOfOld));
      this.#prefixes.put(change.during);
    } catch (error) {
      this.#takeBack(change, inForce);
      this.#clear(slot);
      throw error;
    }
    // First the slot, then the revision: a program reads them in the other order, so none can keep a verdict
    // of the old half under the new revision.
    this.#config.set({ policy_slot: slot, flags: withHost(this.#config.current.flags, tables.host) });
    this.#config.bumpRevision();
    this.#prefixes.put(change.put);
    this.#prefixes.delete(change.stale);
    this.#prefixes.took(tables.cidrs, after);
    this.#classes.replace(tables.classes);
    this.#asking = asking;
    const timer = setTimeout(() => this.#finishRetiring(), retireAfterMs);
    timer.unref();
    this.#retiring = { slot: inForce, guests: [...change.guestsOfNew.keys()], timer };
  }

  /**
   * Changes what is in force, in place.
   * @throws Error E2BIG when a map is full; the policy in force then stays as it is.
   */
  update(delta: PolicyDelta): void {
    const slot = this.#config.current.policy_slot;
    const { putEntries, putClasses, deleteClasses, deleteEntries } = delta;
    const keys = putEntries.map((entry) => keyOf(entry, slot));
    const before = keys.map((key) => [key, this.#maps.cs_policy.get(key)] as const);
    const rows = putClasses.flatMap(({ identity }) => this.#classes.row(identity) ?? []);
    const asking = new Set([...this.#asking, ...askingOf(putEntries)]);
    try {
      this.#maps.cs_policy.putBatch(putEntries.map((entry, i) => [keys[i]!, kernelValueOf(entry)] as const));
      this.#classes.put(slot, putClasses, asksIn(asking));
    } catch (error) {
      this.#classes.put(slot, rows, asksIn(this.#asking));
      const known = new Set(rows.map(({ identity }) => identity));
      this.#classes.delete(
        slot,
        putClasses.map(({ identity }) => identity).filter((identity) => !known.has(identity)),
      );
      this.#maps.cs_policy.putBatch(before.flatMap(([key, value]) => (value === undefined ? [] : [[key, value]])));
      this.#maps.cs_policy.deleteBatch(before.flatMap(([key, value]) => (value === undefined ? [key] : [])));
      this.#config.bumpRevision();
      throw error;
    }
    this.#classes.delete(slot, deleteClasses);
    if (deleteEntries.length > 0) this.#maps.cs_policy.deleteBatch(deleteEntries.map((key) => keyOf(key, slot)));
    const changed =
      putEntries.length + deleteEntries.length + deleteClasses.length > 0 || this.#classes.changes(putClasses);
    this.#classes.note(putClasses, deleteClasses);
    this.#asking = asking;
    // A new identity in a class that is there takes nothing away: all its packets were dropped.
    if (changed) this.#config.bumpRevision();
  }

  setRanges(ranges: readonly PrefixEntry[]): void {
    this.#prefixes.setRanges(ranges);
  }

  close(): void {
    this.#finishRetiring();
  }

  #finishRetiring(): void {
    if (this.#retiring === undefined) return;
    const { timer, slot, guests } = this.#retiring;
    clearTimeout(timer);
    this.#clear(slot);
    // Unless an update has made one of them at home meanwhile.
    this.#classes.delete(
      1 - slot,
      guests.filter((identity) => this.#classes.row(identity) === undefined),
    );
    this.#retiring = undefined;
  }

  #takeBack(change: PrefixChange, slot: number): void {
    for (const row of change.during) {
      const known = this.#prefixes.inForce.cover(row);
      if (known?.prefixlen === row.prefixlen) this.#prefixes.put([known]);
      else this.#prefixes.delete([row]);
    }
    this.#classes.delete(slot, [...change.guestsOfOld.keys()]);
  }

  #clear(slot: number): void {
    this.#maps.cs_policy.deleteWhere((keys, at) => keys[at + slotOffset] === slot);
    this.#classes.clear(slot);
  }
}

function withHost(flags: number, { egress, ingress }: PolicyTables['host']): number {
  const others = flags & ~(CFG_HOST_EGRESS | CFG_HOST_INGRESS);
  return others | (egress ? CFG_HOST_EGRESS : 0) | (ingress ? CFG_HOST_INGRESS : 0);
}

/** The entries in force, as the kernel has them. */
export function readPolicy(maps: DatapathMaps, slot: number): PolicyEntry[] {
  return maps.cs_policy.entries().flatMap(([key, value]) => {
    const inForce = verdictOf(value.verdict, value.auth_type, value.rule);
    if (key.slot !== slot || inForce === undefined) return [];
    const observed =
      value.observed_verdict === 0
        ? undefined
        : verdictOf(value.observed_verdict, value.observed_auth_type, value.observed_rule);
    return [
      {
        local: key.local,
        remote: key.remote,
        direction: key.direction === INGRESS ? ('ingress' as const) : ('egress' as const),
        protocol: key.proto,
        port: key.dport,
        portBits: key.port_bits,
        ...inForce,
        ...(observed === undefined ? {} : { observed }),
      },
    ];
  });
}

function verdictOf(verdict: number, authCode: number, rule: number): PolicyVerdict | undefined {
  const authType = authTypeOf(authCode);
  return authType && { verdict: verdict === POLICY_ALLOW ? 'allow' : 'deny', authType, rule };
}

function keyOf(entry: PolicyEntryKey, slot: number) {
  return {
    local: entry.local,
    remote: entry.remote,
    dport: entry.port,
    proto: entry.protocol,
    port_bits: entry.portBits,
    direction: entry.direction === 'ingress' ? INGRESS : EGRESS,
    slot,
  };
}

function kernelValueOf({ observed, ...entry }: PolicyEntry) {
  return {
    verdict: entry.verdict === 'allow' ? POLICY_ALLOW : POLICY_DENY,
    auth_type: AUTH_TYPE_CODE[entry.authType],
    observed_verdict: observed === undefined ? 0 : observed.verdict === 'allow' ? POLICY_ALLOW : POLICY_DENY,
    observed_auth_type: observed === undefined ? 0 : AUTH_TYPE_CODE[observed.authType],
    rule: entry.rule,
    observed_rule: observed?.rule ?? 0,
  };
}

function rowsOf(guests: PrefixChange['guestsOfOld']): PolicyClassRow[] {
  return [...guests].flatMap(([identity, remote]) =>
    remote === undefined ? [] : [{ identity, local: none, remote, portBits: none }],
  );
}

function askingOf(entries: readonly PolicyEntry[]): Set<string> {
  const asking = new Set<string>();
  for (const { local, direction, authType, observed } of entries) {
    if (authType === 'spiffe' || observed?.authType === 'spiffe') asking.add(`${direction} ${local}`);
  }
  return asking;
}

function asksIn(asking: ReadonlySet<string>) {
  return (local: PolicyClass, direction: Direction) => asking.has(`${direction} ${local}`);
}
