/** The test's end of wireguard-host.ts. */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import type { WireguardTunnelOptions } from '../../../src/encryption/open.ts';
import type { Tunnel } from '../../../src/model/tunnel.ts';
import type { Namespaces } from './namespaces.ts';

type Methods =
  | 'setPeer'
  | 'startHandshake'
  | 'removePeer'
  | 'endSession'
  | 'allow'
  | 'disallow'
  | 'status'
  | 'close'
  | 'destroy';
type Settled = PromiseWithResolvers<unknown>;
type Ready = { publicKey: Uint8Array; ifindex: number; implementation: string };

export class WireguardNode {
  readonly publicKey: Buffer;
  readonly ifindex: number;
  readonly implementation: string;
  /** Interface indexes of devices that took the place of a dead one. */
  readonly replaced: number[] = [];
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Settled>();
  #next = 1;

  private constructor(child: ChildProcess, ready: Ready) {
    this.#child = child;
    this.publicKey = Buffer.from(ready.publicKey);
    this.ifindex = ready.ifindex;
    this.implementation = ready.implementation;
    child.on('message', (message: { id: number; result?: unknown; error?: string; replaced?: number }) => {
      if (message.replaced !== undefined) this.replaced.push(message.replaced);
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error === undefined) waiting?.resolve(message.result);
      else waiting?.reject(new Error(message.error));
    });
  }

  static async start(
    spaces: Namespaces,
    ns: string,
    options: Omit<WireguardTunnelOptions, 'log' | 'onDeviceReplaced'>,
  ): Promise<WireguardNode> {
    const host = join(import.meta.dirname, 'wireguard-host.ts');
    const child = spaces.spawn(ns, [process.execPath, host, JSON.stringify(options)], true);
    let stderr = '';
    child.stderr!.on('data', (data) => {
      stderr += data;
    });
    return new Promise((resolve, reject) => {
      child.once('exit', () => reject(new Error(`the tunnel's process ended: ${stderr}`)));
      child.once('message', (message: { ready: Ready }) => resolve(new WireguardNode(child, message.ready)));
    });
  }

  call<M extends Methods>(method: M, ...args: Parameters<Tunnel[M]>): Promise<Awaited<ReturnType<Tunnel[M]>>> {
    const settled = Promise.withResolvers<unknown>();
    const id = this.#next++;
    this.#waiting.set(id, settled);
    this.#child.send({ id, method, args });
    return settled.promise as Promise<Awaited<ReturnType<Tunnel[M]>>>;
  }

  /** kill -9, as an agent may die at any moment. */
  async kill(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGKILL');
    await ended;
  }
}
