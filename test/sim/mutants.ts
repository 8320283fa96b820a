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
  readonly change?: SourceChange;
  /** Found within so many schedules. */
  readonly within: number;
  /** What is found. Left out: P1 or P2. */
  readonly finds?: readonly string[];
}

export const MUTANTS: readonly Mutant[] = [
  { name: 'FenceSend', what: 'fences are not written', faults: { noFences: true }, within: 4_000 },
  {
    name: 'LeaseEveryPacket',
    what: 'the kernel does not look at leases',
    faults: { leaseUnchecked: true },
    within: 4_000,
  },
  {
    name: 'AckAfterDelete',
    what: 'the ack goes out while the entry is in force',
    faults: { lateDelete: true },
    within: 4_000,
  },
  {
    name: 'AckAfterPrograms',
    what: 'programs that run are not waited for',
    faults: { noQuiesce: true },
    within: 20_000,
  },
  { name: 'DrainTime', what: 'no drain', settings: { drainMs: 0 }, within: 4_000 },
  {
    name: 'DropSessionBeforeSuccessor',
    what: 'sessions of the tunnel go on',
    faults: { noEndSession: true },
    within: 4_000,
  },
];
