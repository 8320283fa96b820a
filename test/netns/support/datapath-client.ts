/** The test's end of datapath-host.ts: the datapath's own methods, asynchronous, and its signals. */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import type { Datapath, DatapathOptions } from '../../../src/datapath/datapath.ts';
import type { DatapathSignal } from '../../../src/model/datapath.ts';
import type { Namespaces } from './namespaces.ts';

type Method = (...args: never[]) => unknown;
/** "setPolicy" or "auth.put" to its function type. */
type MethodAt<P extends string> = P extends `${infer A extends 'auth' | 'addresses' | 'hold' | 'fences'}.${infer B}`
  ? B extends keyof Datapath[A]
    ? Datapath[A][B]
    : never
  : P extends keyof Datapath
    ? Datapath[P]
    : never;

export class DatapathClient {
  readonly signals: DatapathSignal[] = [];
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  #next = 1;
  attachMode = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start(
    namespaces: Namespaces,
    ns: string,
    options: Omit<DatapathOptions, 'clock' | 'log' | 'onSignal'>,
  ): Promise<DatapathClient> {
    const host = join(import.meta.dirname, 'datapath-host.ts');
    const child = namespaces.spawn(ns, [process.execPath, host, JSON.stringify(options)], true);
    const client = new DatapathClient(child);
    let stderr = '';
    child.stderr!.on('data', (data) => {
      stderr += data;
    });
    await new Promise<void>((resolve, reject) => {
      child.once('exit', () => reject(new Error(`the datapath process ended: ${stderr}`)));
      child.on('message', (message: Record<string, unknown>) => {
        if (message.ready !== undefined) {
          client.attachMode = String(message.ready);
          resolve();
        } else if (message.signal !== undefined) {
          client.signals.push(message.signal as DatapathSignal);
        } else {
          const waiting = client.#waiting.get(message.id as number);
          client.#waiting.delete(message.id as number);
          if (message.error === undefined) waiting?.resolve(message.result);
          else waiting?.reject(new Error(String(message.error)));
        }
      });
    });
    return client;
  }

  call<P extends string>(
    method: P,
    ...args: MethodAt<P> extends Method ? Parameters<MethodAt<P>> : never
  ): Promise<MethodAt<P> extends Method ? Awaited<ReturnType<MethodAt<P>>> : never> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.#child.send({ id, method, args });
    });
  }

  /** kill -9, as an agent may die at any moment. */
  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGKILL');
    await ended;
  }
}
