/** The compiled policy in the kernel: two halves, of which one is in force. A change is seen whole or not at all. */
import { AUTH_TYPE_CODE, type PolicyEntry } from '../model/datapath.ts';
import { securityIdentity } from '../model/ids.ts';
import { authTypeOf } from './auth-table.ts';
import type { ConfigWriter } from './config.ts';
import { EGRESS, INGRESS, POLICY_ALLOW, POLICY_DENY } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

/** How long the half that was in force stays readable for programs that have already begun. They run for microseconds. */
const retireAfterMs = 20;

export class PolicyTable {
  readonly #maps: DatapathMaps;
  readonly #config: ConfigWriter;
  #retiring: { readonly slot: number; readonly timer: NodeJS.Timeout } | undefined;

  constructor(maps: DatapathMaps, config: ConfigWriter) {
    this.#maps = maps;
    this.#config = config;
    this.#clear(1 - config.current.policy_slot); // what a killed agent left
  }

  /**
   * Puts these entries in force instead of all earlier ones.
   * @throws Error E2BIG when the map is full; the policy in force then stays as it is.
   */
  set(entries: readonly PolicyEntry[]): void {
    this.#finishRetiring();
    const inForce = this.#config.current.policy_slot;
    const slot = 1 - inForce;
    try {
      this.#maps.cs_policy.putBatch(entries.map((entry) => [keyOf(entry, slot), verdictOf(entry)] as const));
    } catch (error) {
      this.#clear(slot);
      throw error;
    }
    // First the slot, then the revision: a program reads them in the other order, so none can keep a verdict
    // of the old half under the new revision.
    this.#config.set({ policy_slot: slot });
    this.#config.bumpRevision();
    const timer = setTimeout(() => this.#finishRetiring(), retireAfterMs);
    timer.unref();
    this.#retiring = { slot: inForce, timer };
  }

  close(): void {
    this.#finishRetiring();
  }

  #finishRetiring(): void {
    if (this.#retiring === undefined) return;
    clearTimeout(this.#retiring.timer);
    this.#clear(this.#retiring.slot);
    this.#retiring = undefined;
  }

  #clear(slot: number): void {
    const keys = this.#maps.cs_policy.entries().flatMap(([key]) => (key.slot === slot ? [key] : []));
    if (keys.length > 0) this.#maps.cs_policy.deleteBatch(keys);
  }
}

/** The policy in force, as the kernel has it. */
export function readPolicy(maps: DatapathMaps, slot: number): PolicyEntry[] {
  return maps.cs_policy.entries().flatMap(([key, value]) => {
    const authType = authTypeOf(value.auth_type);
    if (key.slot !== slot || authType === undefined) return [];
    return [
      {
        local: securityIdentity(key.local),
        remote: securityIdentity(key.remote),
        direction: key.direction === INGRESS ? ('ingress' as const) : ('egress' as const),
        protocol: key.proto,
        port: key.dport,
        verdict: value.verdict === POLICY_ALLOW ? ('allow' as const) : ('deny' as const),
        authType,
        rule: value.rule,
      },
    ];
  });
}

function keyOf(entry: PolicyEntry, slot: number) {
  return {
    local: entry.local,
    remote: entry.remote,
    dport: entry.port,
    proto: entry.protocol,
    direction: entry.direction === 'ingress' ? INGRESS : EGRESS,
    slot,
  };
}

function verdictOf(entry: PolicyEntry) {
  return {
    verdict: entry.verdict === 'allow' ? POLICY_ALLOW : POLICY_DENY,
    auth_type: AUTH_TYPE_CODE[entry.authType],
    rule: entry.rule,
  };
}
