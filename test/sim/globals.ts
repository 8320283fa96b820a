/**
 * The product's parts that set timers of their own get simulated ones, on the clock of the process that runs just then. Loaded by
 * the simulation's workers only, before any of them.
 */
import { readFileSync } from 'node:fs';
import { registerHooks, stripTypeScriptTypes } from 'node:module';
import { setImmediate as realImmediate, setTimeout as realTimeout } from 'node:timers';
import { type Engine, type Event, timerMs } from './engine.ts';

let engine: Engine | undefined;
const realRandom = Math.random;
let draw = realRandom;
let onRejection: (thrown: unknown) => void = () => {};

/** Whose time and whose chance it is from now on, and who hears of promises that nobody caught. */
export function follow(
  now: Engine | undefined,
  draws: () => number = realRandom,
  rejected: (thrown: unknown) => void = () => {},
): void {
  engine = now;
  draw = draws;
  onRejection = rejected;
}

class Timer {
  readonly event: Event;

  constructor(event: Event) {
    this.event = event;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }
}

/** Simulated while a schedule runs in an event of some machine; else the real ones. */
export function simulateTimers(): void {
  // Refusals are thrown by the thousand.
  Error.stackTraceLimit = 5;
  process.on('unhandledRejection', (thrown) => onRejection(thrown));
  const scope = globalThis as unknown as Record<string, unknown>;
  scope.setTimeout = (fn: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) =>
    engine?.current === undefined
      ? realTimeout(fn, ms, ...args)
      : new Timer(engine.after(timerMs(ms), engine.current, () => fn(...args)));
  scope.setImmediate = (fn: (...args: unknown[]) => void, ...args: unknown[]) =>
    engine?.current === undefined
      ? realImmediate(fn, ...args)
      : new Timer(engine.after(0, engine.current, () => fn(...args)));
  const clear = scope.clearTimeout as (timer: unknown) => void;
  scope.clearTimeout = (timer: unknown) => {
    if (timer instanceof Timer) timer.event.cancelled = true;
    else clear(timer);
  };
  Math.random = () => draw();
  scope.performance = { ...performance, now: () => engine?.nowMs ?? 0, timeOrigin: 0 };
}

/** Who gets crypto.ts in place of node:crypto. */
const CHEAP = /\/src\/(auth|encryption)\/[a-z0-9/-]+\.ts$/;

/** Before any of the product's files is loaded. */
export function simulateCrypto(): void {
  registerHooks({
    resolve(specifier, context, next) {
      return specifier === 'node:crypto' && CHEAP.test(context.parentURL ?? '')
        ? { url: new URL('./crypto.ts', import.meta.url).href, shortCircuit: true }
        : next(specifier, context);
    },
  });
}

/** A piece of the product's source that is to be something else. */
export interface SourceChange {
  /** Path below the repository's root. */
  readonly file: string;
  /** Must be there exactly once, or the mutant is no longer one. */
  readonly find: string;
  readonly replace: string;
}

/** Before the files are loaded. @throws Error, when one is, if the text is not there once. */
export function breakSource(changes: readonly SourceChange[]): void {
  registerHooks({
    load(url, context, next) {
      const here = changes.filter(({ file }) => url === new URL(`../../${file}`, import.meta.url).href);
      if (here.length === 0) return next(url, context);
      let source = readFileSync(new URL(url), 'utf8');
      for (const { file, find, replace } of here) {
        const parts = source.split(find);
        if (parts.length !== 2) throw new Error(`${file} has ${parts.length - 1} times: ${find}`);
        source = parts.join(replace);
      }
      return { format: 'module', source: stripTypeScriptTypes(source), shortCircuit: true };
    },
  });
}
