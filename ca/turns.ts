/** Requests of one turn of the event loop go through together, so that one commit of the ledger serves all of them. */
import { CountersignError } from '../src/base/errors.ts';

export class Turns<Job> {
  readonly #most: number;
  readonly #work: (jobs: Job[]) => void;
  #waiting: Job[] = [];
  #scheduled: NodeJS.Immediate | undefined;
  #closed = false;

  /** @param most in one turn: bounds how long it holds the event loop. @param work answers each job; throws nothing. */
  constructor(most: number, work: (jobs: Job[]) => void) {
    this.#most = most;
    this.#work = work;
  }

  /** @throws CountersignError unavailable, after close */
  add(job: Job): void {
    if (this.#closed) throw new CountersignError('unavailable', 'the certificate authority is closed');
    this.#waiting.push(job);
    this.#scheduled ??= setImmediate(() => this.#turn());
  }

  /** Finishes what waits. */
  close(): void {
    this.#closed = true;
    while (this.#waiting.length > 0) this.#turn();
  }

  #turn(): void {
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
    const jobs = this.#waiting.splice(0, this.#most);
    this.#scheduled = this.#waiting.length > 0 ? setImmediate(() => this.#turn()) : undefined;
    this.#work(jobs);
  }
}
