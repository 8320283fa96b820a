/**
 * Rules taken away, one at a time, without touching the product: a setting, a part of the simulated kernel that no longer does its
 * work, or one piece of source that a module hook replaces while it is loaded. Each must be found.
 */
import type { AuthSettings } from '../../src/auth/ports.ts';
import type { Faults } from './faults.ts';
import type { SourceChange } from './globals.ts';

export interface Mutant {
  /** The rule that is missing, as the model names it. */
  readonly name: string;
  readonly what: string;
  readonly faults?: Faults;
  readonly settings?: Partial<AuthSettings>;
  readonly changes?: readonly SourceChange[];
  /** Found within so many schedules. 0: another rule stands behind it, and no packet shows that it is missing. */
  readonly within: number;
  /** What is found. Left out: P1 or P2. */
  readonly finds?: readonly string[];
  /** Within so many schedules the model's monitor refuses what the code says of itself. Left out: it does not say what is missing. */
  readonly refusedWithin?: number;
}

const CLIENT = 'src/auth/vouch-client.ts';

export const MUTANTS: readonly Mutant[] = [
  {
    name: 'Fence',
    what: 'fences are not written',
    faults: { noFences: true },
    within: 4_000,
    refusedWithin: 400,
  },
  {
    name: 'LeaseEveryPacket',
    what: 'the kernel does not look at leases, the agent does not clear away those that ended (one does for the other)',
    faults: { leaseUnchecked: true },
    changes: [
      {
        file: 'src/auth/vouch-tables.ts',
        find: 'if (vouch.leaseEndNs > now) {',
        replace: 'if (vouch.leaseEndNs > 0n) {',
      },
    ],
    within: 4_000,
    finds: ['P3'],
    refusedWithin: 400,
  },
  {
    name: 'AckAfterDelete',
    what: 'the ack goes out while the entry is in force',
    faults: { lateDelete: true },
    within: 4_000,
  },
  {
    name: 'DrainTime',
    what: 'no drain (what the sessions brought dies with them)',
    settings: { drainMs: 0 },
    within: 0,
    refusedWithin: 400,
  },
  {
    name: 'DropSessionBeforeSuccessor',
    what: 'sessions of the tunnel go on',
    faults: { noEndSession: true },
    within: 4_000,
  },
  {
    name: 'ResetNamesLive',
    what: 'a new channel confirms nothing: what RESET does not name stays',
    changes: [
      {
        file: CLIENT,
        find: 'const old = held.filter((entry) => !goesOn(entry));',
        replace: 'const old = held.filter((entry) => entry.incarnation < incarnation);',
      },
    ],
    within: 20_000,
    refusedWithin: 400,
  },
  {
    name: 'OtherNodesLeaseWins',
    what: "another node's live lease is displaced",
    changes: [
      {
        file: CLIENT,
        find: "if (held.node !== claim.node && isAlive) return 'VOUCH_HELD_BY_OTHER';",
        replace: '',
      },
    ],
    within: 4_000,
    finds: ['P1', 'P2', 'P4'],
  },
  {
    name: 'StampLocalDelivery',
    what: 'what another node vouches for goes on beside an own endpoint that gets its address',
    changes: [
      {
        file: 'src/auth/vouch-host.ts',
        find: 'const moved = this.#options.takeOver(hosted.addresses);',
        replace: 'const moved: readonly IpAddress[] = [];',
      },
    ],
    within: 4_000,
    finds: ['P1', 'P2', 'P4'],
    refusedWithin: 400,
  },
];
