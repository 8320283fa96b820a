/** etcd as this server uses it: reads that see every earlier write, and transactions that say whether their conditions held. */
import { Etcd3, type IOptions, type Lease, type Namespace } from 'etcd3';
import { asError, CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile, readPublicFile } from '../../src/base/private-file.ts';
import type { EtcdConfig } from './config.ts';

const CALL_MS = 2_000;

type Policies = NonNullable<IOptions['faultHandling']>;

/** A call is tried once: who calls knows whether it may be repeated. etcd3 would put a server off for five seconds after three failures. */
const once = {
  execute: async (work: (context: object) => unknown) => work({}),
  onSuccess: () => ({ dispose() {} }),
  onFailure: () => ({ dispose() {} }),
} as unknown as NonNullable<Policies['global']>;

export type Condition = readonly [key: string, column: 'Create' | 'Value' | 'Version', value: string | number];
export type Change =
  | { readonly put: string; readonly value: Buffer | string; readonly lease?: string }
  | { readonly delete: string }
  | { readonly deleteRange: readonly [start: string, end: string] };

export class EtcdStore {
  readonly #client: Etcd3;
  readonly #keys: Namespace;
  readonly #where: string;
  readonly prefix: string;

  /** @throws CountersignError for files that will not do; etcd is not asked yet. */
  constructor({ endpoints, prefix, tls, auth }: EtcdConfig) {
    const deadline = () => ({ deadline: Date.now() + CALL_MS });
    this.#client = new Etcd3({
      hosts: endpoints,
      ...(tls === undefined
        ? {}
        : {
            credentials: {
              rootCertificate: readPublicFile(tls.caFile),
              certChain: readPublicFile(tls.certFile),
              privateKey: readPrivateFile(tls.keyFile),
            },
          }),
      ...(auth === undefined
        ? {}
        : { auth: { username: auth.username, password: readPrivateFile(auth.passwordFile).toString('utf8').trim() } }),
      grpcOptions: {
        'grpc.initial_reconnect_backoff_ms': 100,
        'grpc.max_reconnect_backoff_ms': 1000,
        'grpc.keepalive_time_ms': 5_000,
        'grpc.keepalive_timeout_ms': 2_000,
        'grpc.max_receive_message_length': 64 << 20,
        'grpc.enable_http_proxy': 0,
      },
      defaultCallOptions: (context) => (context.isStream ? {} : deadline()),
      faultHandling: { global: once, host: () => once },
    });
    this.#keys = this.#client.namespace(prefix);
    this.#where = `etcd at ${endpoints.join(', ')}`;
    this.prefix = prefix;
  }

  async get(key: string): Promise<Buffer | undefined> {
    return (await this.#ask(() => this.#keys.get(key).buffer())) ?? undefined;
  }

  /** In the order of their keys, from `start` to before `end`. */
  async range(start: string, end: string, limit: number): Promise<[key: string, value: Buffer][]> {
    const found = await this.#ask(() =>
      this.#keys.getAll().inRange({ start, end }).sort('Key', 'Ascend').limit(limit).buffers(),
    );
    return Object.entries(found);
  }

  /** Undefined if a condition did not hold; else the revision of the change. */
  async change(conditions: readonly Condition[], changes: readonly Change[]): Promise<string | undefined> {
    const [[key, column, value], ...more] = conditions as [Condition, ...Condition[]];
    const done = await this.#ask(() => {
      let transaction = this.#keys.if(key, column, '==', value);
      for (const [k, c, v] of more) transaction = transaction.and(k, c, '==', v);
      // etcd serves a transaction without any read or write from what one member happens to know
      return transaction.then(this.#keys.get(key), ...changes.map((change) => this.#operation(change))).commit();
    });
    return done.succeeded ? done.header.revision : undefined;
  }

  /** @param lost called when etcd says that the lease has ended. */
  async lease(seconds: number): Promise<Lease> {
    const lease = this.#keys.lease(seconds, { autoKeepAlive: false });
    await this.#ask(() => lease.grant());
    return lease;
  }

  async keepAlive(lease: Lease): Promise<void> {
    await this.#ask(() => lease.keepaliveOnce({ deadline: Date.now() + CALL_MS }));
  }

  async revoke(lease: Lease): Promise<void> {
    await this.#ask(() => lease.revoke({ deadline: Date.now() + CALL_MS }));
  }

  /** Calls when the key may have changed. What it missed is found by looking: nothing rests on it but speed. Returns what ends it. */
  watch(key: string, changed: () => void): () => void {
    let ended = false;
    const opened = this.#keys.watch().key(key).watcher();
    opened.on('put', changed);
    opened.on('delete', changed);
    opened.on('error', () => {});
    return () => {
      if (ended) return;
      ended = true;
      opened.removeAllListeners('put');
      opened.removeAllListeners('delete');
      opened.cancel().catch(() => {});
    };
  }

  close(): void {
    this.#client.close();
  }

  #operation(change: Change) {
    if ('put' in change) {
      const put = this.#keys.put(change.put).value(change.value);
      return change.lease === undefined ? put : put.lease(change.lease);
    }
    if ('delete' in change) return this.#keys.delete().key(change.delete);
    const [start, end] = change.deleteRange;
    return this.#keys.delete().inRange({ start, end });
  }

  async #ask<T>(call: () => PromiseLike<T>): Promise<T> {
    try {
      return await call();
    } catch (thrown) {
      throw new CountersignError('unavailable', `${this.#where}: ${asError(thrown).message}`, { cause: thrown });
    }
  }
}
