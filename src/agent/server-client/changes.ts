/** Listeners, told of one change after the other, and the word to the server once all of them are done: "in force". */
import { asError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type { IdentityRow, NodeInfo, Revocation } from '../../model/identity.ts';
import type { TableChange } from './tables.ts';

/** What one message of the server changed. The tables hold it already. */
export interface SyncChange {
  readonly version: bigint;
  /** All that is known was replaced; the rest says what that changed. The first call of each listener is one, with all of it. */
  readonly snapshot: boolean;
  readonly entries: TableChange<RegistrationEntry>;
  readonly identities: TableChange<IdentityRow>;
  readonly nodes: TableChange<NodeInfo>;
  /** Authorities of the own trust domain came or went. */
  readonly bundle: boolean;
  /** New ones. */
  readonly revocations: readonly Revocation[];
}

export type SyncListener = (change: SyncChange) => void | Promise<void>;
export type UrgentListener = (change: SyncChange) => void;

/**
 * Changes reach listeners in order and one at a time: the next is told when all are done with the one before. A version is
 * in force when that is so of it and of all before it. What takes trust away is told at once besides: no change before it, slow or stuck,
 * holds it up.
 */
export class ChangeQueue {
  readonly #listeners = new Set<SyncListener>();
  readonly #urgentListeners = new Set<UrgentListener>();
  readonly #log: Logger;
  readonly #failed: () => void;
  #tail: Promise<void> = Promise.resolve();

  /** @param failed a listener threw: what it was told is not in force and must be told again. */
  constructor(log: Logger, failed: () => void) {
    this.#log = log;
    this.#failed = failed;
  }

  /** `first` is told at once, and the listener everything that is pushed from now on. `inForce` as in `push`. */
  add(listener: SyncListener, first: SyncChange, inForce: () => void): void {
    this.#listeners.add(listener);
    this.#enqueue([listener], first, inForce);
  }

  /** Told of revocations, and of authorities that came or went, in the turn in which they come, before their change has its own. */
  onUrgent(listener: UrgentListener): void {
    this.#urgentListeners.add(listener);
  }

  /** `inForce` is called when every listener is done; never if there is none, or if one threw. */
  push(change: SyncChange, inForce: () => void): void {
    if (change.revocations.length > 0 || change.bundle) this.#urgent(change);
    this.#enqueue([...this.#listeners], change, inForce);
  }

  #urgent(change: SyncChange): void {
    for (const listener of this.#urgentListeners) {
      try {
        listener(change);
      } catch (thrown) {
        // Its change will be told as well, and is not in force if that throws too.
        this.#log.error({ err: asError(thrown) }, 'what was taken back could not be put into force at once');
      }
    }
  }

  #enqueue(listeners: readonly SyncListener[], change: SyncChange, inForce: () => void): void {
    const told = this.#tail.then(async () => {
      await Promise.all(listeners.map(async (listener) => listener(change)));
      if (listeners.length > 0) inForce();
    });
    this.#tail = told.catch((thrown: unknown) => {
      this.#log.error(
        { err: asError(thrown), version: String(change.version) },
        'a change could not be put into force',
      );
      this.#failed();
    });
  }
}
