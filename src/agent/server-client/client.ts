/**
 * This node's line to the identity server: attest once, keep one Sync stream, issue, renew. When the server is gone the
 * node keeps what it knows; nothing new is trusted until the server is back.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type {
  IssueJwtRequest,
  IssueJwtResponse,
  IssueRequest,
  IssueResponse,
  PutCheckpointRequest,
  PutCheckpointResponse,
  SyncResponse,
} from '../../../proto/gen/countersign/server/v1/server.ts';
import { asError, CountersignError, err, ok, type Result } from '../../base/errors.ts';
import { type ReasonCode, reasonCodes } from '../../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type {
  IdentityTable,
  NodeInfo,
  NodeTable,
  RevocationTable,
  TrustBundle,
  TrustBundles,
} from '../../model/identity.ts';
import type { SpiffeId, TrustDomain } from '../../model/ids.ts';
import { nodeSpiffeId } from '../../model/spiffe-id.ts';
import type { IssuedJwtSvid } from '../../workload/feed.ts';
import type { ServerClient, ServerClientOptions, ServerClientStatus } from './api.ts';
import { attest, type NodeProof } from './attest.ts';
import type { OwnBundle } from './bundles.ts';
import { ChangeQueue, type SyncListener, type UrgentListener } from './changes.ts';
import { LifeWatch } from './life.ts';
import { loadNodeState, type NodeState, saveNodeState } from './node-state.ts';
import { Online } from './online.ts';
import { NodeRenewal, renewNodeSvid } from './renewal.ts';
import { openSync } from './sync-stream.ts';
import { SyncedState } from './synced-state.ts';
import { Connection, reasonIn, ServerError } from './transport.ts';

export type { ServerClient, ServerClientOptions } from './api.ts';
export type { SyncChange } from './changes.ts';
export type { TableChange } from './tables.ts';

const CALL_MS = 10_000;
const BACKOFF_FIRST_MS = 100;
const BACKOFF_MAX_MS = 10_000;
/** How long a start waits for the server to notice that an earlier agent of this name is gone. */
const TAKEOVER_MS = 15_000;
/** A stream that lived this long was no failure: the next try is not put off. */
const STABLE_MS = 5_000;
/**
 * Refusals by the server that no waiting mends: it knows a later holder of this node's name, or does not take this node's certificate any
 * more. The way back is to attest anew, with the next start.
 */
const BARRED: ReadonlySet<ReasonCode | undefined> = new Set([
  'ATTEST_NODE_CLONED',
  'ATTEST_NODE_EVICTED',
  'PEER_INCARNATION_BARRED',
  'AUTH_REVOKED',
  'CERT_UNTRUSTED',
  'CERT_EXPIRED',
]);

/**
 * Resolves when this node has its SVID and the first snapshot.
 * @throws ServerError unauthenticated: the server is another one, or it refuses this node; already-exists: an agent of this name is there
 * @throws CountersignError bad-input: the state on disk is damaged
 */
export async function connectServer(options: ServerClientOptions): Promise<ServerClient> {
  const client = new Client(options);
  try {
    await client.start();
    return client;
  } catch (thrown) {
    await client.close();
    throw thrown;
  }
}

class Client implements ServerClient {
  readonly trustDomain: TrustDomain;
  readonly node: ServerClient['node'];
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  readonly #options: ServerClientOptions;
  readonly #self: SpiffeId;
  readonly #synced: SyncedState;
  readonly #changes: ChangeQueue;
  readonly #svidListeners = new Set<() => void>();
  readonly #closing = new AbortController();
  readonly #life: LifeWatch;
  readonly #renewal: NodeRenewal;
  readonly #online: Online;
  #barred: ReasonCode | undefined;
  #barredListener: (reason: ReasonCode) => void = () => {};
  #state: NodeState | undefined;
  #connection: Connection | undefined;
  #stream: ReturnType<typeof openSync> | undefined;
  #loop: Promise<void> | undefined;
  #lastSyncMs: number | undefined;
  #inForce = 0n;
  #lastError: string | undefined;

  constructor(options: ServerClientOptions) {
    const { trustDomain, nodeName, bundle, log, audit } = options;
    this.trustDomain = trustDomain;
    this.#options = options;
    this.#self = nodeSpiffeId(trustDomain, nodeName);
    this.#synced = new SyncedState(trustDomain, this.#self, bundle, options.clock, log, audit);
    this.#life = new LifeWatch(options.clock, () => this.#bar('ATTEST_NEW_LIFE'), options.bootId);
    this.#online = new Online(options.addresses);
    this.#renewal = new NodeRenewal({
      renew: () => this.#renew(),
      failed: (thrown) => {
        this.#options.log.warn({ problem: this.#noted(thrown).message }, 'the node SVID could not be renewed yet');
      },
      cluster: this.#synced,
      clock: options.clock,
    });
    this.identities = this.#synced.identities;
    this.nodes = this.#synced.nodes;
    this.revocations = this.#synced.revocations;
    this.bundles = {
      bundleOf: (wanted) => (wanted === trustDomain ? this.#synced.bundle : undefined),
    };
    // what a listener failed to put into force is told to all again, from a new snapshot
    this.#changes = new ChangeQueue(log, () => {
      this.#synced.forget();
      this.#stream?.cancel();
    });
    const client = this;
    this.node = {
      get info() {
        return client.#info();
      },
      svid: () => this.#mustState().svid,
    };
  }

  async start(): Promise<void> {
    const { stateDir, bundle, clock, signal } = this.#options;
    const loaded = loadNodeState(stateDir, this.#self, bundle);
    // What was handed out may be older than what the server said since: also who has to attest anew finds the server by that.
    if (loaded !== undefined) this.#synced.bundles.own = loaded.bundle;
    if (loaded !== undefined && loaded.svid.notAfterMs > clock.nowMs()) this.#take(loaded, false);
    let loadedIsGood = this.#state !== undefined;
    const startedMs = performance.now();
    for (let attempt = 0; ; attempt++) {
      try {
        signal?.throwIfAborted();
        if (this.#state === undefined) await this.#attest();
        else if (!this.#life.isCurrent(this.#state.life)) await this.#beginNewLife(this.#state);
        await this.#firstSync();
        return;
      } catch (thrown) {
        const error = this.#noted(thrown);
        if (!(error instanceof ServerError)) throw error;
        if (loadedIsGood && error.code === 'permission-denied') {
          // the server no longer knows this certificate: joining again is what is left
          loadedIsGood = false;
          this.#state = undefined;
          this.#options.log.warn({ reason: error.reason }, 'the server refuses this node as it was; attesting anew');
        } else if (!isPassing(error, performance.now() - startedMs)) throw error;
        const isNewLife = this.#state !== undefined && !this.#life.isCurrent(this.#state.life);
        const newLife = isNewLife ? `${reasonCodes.ATTEST_NEW_LIFE} (ATTEST_NEW_LIFE); ` : '';
        this.#options.waiting?.(`${newLife}${error.message}`);
        await this.#pause(attempt, signal);
      }
    }
  }

  entries(): readonly RegistrationEntry[] {
    return this.#synced.entries.list();
  }

  onChange(listener: SyncListener): void {
    const everything = this.#synced.everything();
    this.#changes.add(listener, everything, () => this.#ack(everything.version));
  }

  onUrgent(listener: UrgentListener): void {
    this.#changes.onUrgent(listener);
  }

  ownBundle(): OwnBundle {
    return this.#synced.bundles.own;
  }

  federatedBundles(): readonly TrustBundle[] {
    return this.#synced.bundles.federated();
  }

  crls(): readonly Buffer[] {
    return this.#synced.bundles.crls();
  }

  onNodeSvid(listener: () => void): void {
    this.#svidListeners.add(listener);
  }

  onBarred(listener: (reason: ReasonCode) => void): void {
    this.#barredListener = listener;
    if (this.#barred !== undefined) listener(this.#barred);
  }

  async issue(requests: readonly { entryId: string; csr: Buffer }[]): Promise<Result<Buffer[], ReasonCode>[]> {
    const request: IssueRequest = { csrs: [...requests] };
    const { results } = await this.#call<IssueRequest, IssueResponse>('issue', request);
    if (results.length !== requests.length) {
      throw new ServerError('internal', undefined, 'the identity server answered another number of requests');
    }
    return results.map(({ outcome }) => {
      if (outcome?.$case === 'svid') return ok(outcome.value.certificateChain);
      return err(reasonIn(outcome?.value ?? '') ?? 'ISSUE_NOT_YOUR_ENTRY');
    });
  }

  async issueJwt(entryId: string, audience: readonly string[]): Promise<IssuedJwtSvid> {
    const request: IssueJwtRequest = { entryId, audience: [...audience] };
    const { token, expiresAt } = await this.#call<IssueJwtRequest, IssueJwtResponse>('issueJwt', request);
    return { token, expiresAtMs: Number(expiresAt) * 1000 };
  }

  async putCheckpoint(text: Buffer): Promise<void> {
    const request = { checkpoint: text };
    await this.#call<PutCheckpointRequest, PutCheckpointResponse>('putCheckpoint', request);
  }

  status(): ServerClientStatus {
    return {
      addresses: this.#options.addresses,
      connected: this.#online.isUp,
      lastSyncMs: this.#lastSyncMs,
      version: this.#synced.version,
      inForceVersion: this.#inForce,
      nodeSvidNotAfterMs: this.#state?.svid.notAfterMs ?? 0,
      refusedItems: this.#synced.refusedItems,
      lastError: this.#lastError,
    };
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#life.close();
    this.#renewal.close();
    this.#stream?.cancel();
    await this.#loop;
    this.#connection?.close();
  }

  /** The tables' word, or before the first snapshot what attestation said. */
  #info(): NodeInfo {
    const { nodeName, peerAddresses } = this.#options;
    const { nodeId: id, incarnation } = this.#mustState();
    const listed = this.#synced.nodes.byName(nodeName);
    const prefixes = listed?.prefixes ?? [];
    return { name: nodeName, spiffeId: this.#self, id, incarnation, peerAddresses, prefixes };
  }

  #mustState(): NodeState {
    if (this.#state === undefined) throw new Error('not attested');
    return this.#state;
  }

  /** Once more if the connection broke, or was that of the node SVID before: these calls may be answered twice. */
  async #call<Request, Response>(method: 'issue' | 'issueJwt' | 'putCheckpoint', request: Request): Promise<Response> {
    for (let attempt = 0; ; attempt++) {
      const connection = await this.#online.connection();
      const { svid } = this.#mustState();
      try {
        return await connection.unary<Request, Response>(method, request, CALL_MS);
      } catch (thrown) {
        const code = thrown instanceof ServerError ? thrown.code : undefined;
        const isOutdated = code === 'permission-denied' && svid !== this.#mustState().svid;
        if (attempt > 0 || !(code === 'unavailable' || isOutdated)) throw thrown;
      }
    }
  }

  async #attest(): Promise<void> {
    const { addresses, nodeName, peerAddresses, clock } = this.#options;
    const proof = await this.#proof();
    const { bundle } = this.#synced;
    const spiffeId = this.#self;
    const life = this.#life.now();
    this.#take(await attest({ addresses, bundle, nodeName, spiffeId, proof, peerAddresses, clock, life }), true);
  }

  /** @throws CountersignError unauthenticated: there is none. */
  async #proof(): Promise<NodeProof> {
    const { nodeName, joinToken, x509pop, stateDir } = this.#options;
    if (x509pop !== undefined) return { type: 'x509pop', ...(await x509pop()) };
    const token = (await joinToken?.())?.trim();
    if (token !== undefined && token !== '') return { type: 'join_token', token };
    const message = `node ${nodeName} has no valid certificate in ${stateDir} and no join token; create one with: countersign token create --node ${nodeName}`;
    throw new CountersignError('unauthenticated', message);
  }

  /**
   * Rule BarLowerIncarnation, this node's side: what was vouched for before the reboot, or after the snapshot that the machine
   * was set back to, is not remembered here. Until the server gave a new incarnation nothing is vouched for.
   */
  async #beginNewLife(state: NodeState): Promise<void> {
    const { addresses, clock, log } = this.#options;
    const bundle = this.#synced.bundle;
    const life = this.#life.now();
    const connection = new Connection({
      addresses,
      bundle,
      svid: state.svid,
      clock,
      isRevoked: (one) => this.revocations.isRevoked(one),
    });
    try {
      log.info(
        { incarnation: String(state.incarnation) },
        'a new life of this machine: a new incarnation is asked for',
      );
      const renewed = await renewNodeSvid(connection, state, bundle, clock.nowMs(), true);
      this.#take({ ...state, ...renewed, life }, true);
    } finally {
      connection.close();
    }
  }

  #bar(reason: ReasonCode): void {
    if (this.#barred !== undefined || this.#closing.signal.aborted) return;
    this.#barred = reason;
    this.#options.log.error({ reason, why: reasonCodes[reason] }, 'this process can no longer be the node');
    this.#barredListener(reason);
  }

  #take(state: NodeState, save: boolean): void {
    const { stateDir, bundle } = this.#options;
    if (save) saveNodeState(stateDir, state, bundle);
    this.#state = state;
    this.#synced.bundles.own = state.bundle;
    this.#renewal.plan(state, state.bundle);
    for (const listener of this.#svidListeners) listener();
  }

  /** Starts the loop that keeps a stream open. Settles with the first snapshot, or with the failure of the first try. */
  #firstSync(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#loop = this.#run(resolve, reject);
    });
  }

  async #run(first: () => void, failed: (thrown: unknown) => void): Promise<void> {
    let attempt = 0;
    let everSynced = false;
    while (!this.#closing.signal.aborted) {
      const begunMs = performance.now();
      const { svid } = this.#mustState();
      // An SVID that has ended gets no other: nobody takes this process for the node any more.
      if (everSynced && this.#options.clock.nowMs() > svid.notAfterMs) return this.#bar('CERT_EXPIRED');
      let handover = false;
      try {
        handover = await this.#syncOnce(() => {
          everSynced = true;
          first();
        });
      } catch (thrown) {
        if (!everSynced) return failed(thrown);
        if (!this.#closing.signal.aborted) {
          const error = this.#noted(thrown);
          const reason = error instanceof ServerError ? error.reason : undefined;
          // what this side refuses of the server is unauthenticated, and what is said of an earlier SVID says nothing of this one
          const isOfNow = svid === this.#mustState().svid;
          if (error instanceof ServerError && error.code === 'permission-denied' && isOfNow && BARRED.has(reason)) {
            this.#bar(reason!);
            return;
          }
          this.#options.log.warn(
            { problem: error.message, reason },
            'the identity server is gone; what is known stays',
          );
        }
      }
      if (!everSynced) return failed(new ServerError('unavailable', undefined, 'the server ended the stream'));
      if (performance.now() - begunMs > STABLE_MS) attempt = 0;
      if (!handover) await this.#pause(attempt++);
    }
  }

  /** One stream, from its opening to its end. True: this side ended it to begin another at once. */
  async #syncOnce(snapshotTaken: () => void): Promise<boolean> {
    const { addresses, clock, peerAddresses } = this.#options;
    const state = this.#mustState();
    const connection = new Connection({
      addresses,
      bundle: this.#synced.bundle,
      svid: state.svid,
      clock,
      isRevoked: (subject) => this.revocations.isRevoked(subject),
    });
    const stream = openSync(connection, { peerAddresses, session: state.session }, (message) => {
      this.#receive(message);
      if (!message.snapshot) return;
      this.#keepSession(message.session);
      this.#online.up(connection);
      this.#lastError = undefined;
      snapshotTaken();
    });
    this.#connection = connection;
    this.#stream = stream;
    if (this.#closing.signal.aborted) stream.cancel();
    try {
      return await stream.ended;
    } finally {
      this.#online.down();
      this.#stream = undefined;
      connection.close();
    }
  }

  #receive(message: SyncResponse): void {
    const change = this.#synced.apply(message);
    this.#lastSyncMs = this.#options.clock.nowMs();
    const { own } = this.#synced.bundles;
    if (own !== this.#mustState().bundle) {
      const state = { ...this.#mustState(), bundle: own };
      // On disk before it is in force: a restart does not bring back what was taken away.
      saveNodeState(this.#options.stateDir, state, this.#options.bundle);
      this.#state = state;
      this.#renewal.plan(state, own);
    }
    this.#changes.push(change, () => this.#ack(change.version));
    // Whoever speaks here was proven by what may just have been taken back.
    if ((change.bundle || change.revocations.length > 0) && this.#connection?.stands(own.bundle) === false) {
      this.#stream?.cancel();
    }
  }

  /** On disk first: the server takes no earlier number from anybody once this one is confirmed. */
  #keepSession(session: bigint): void {
    if (session === 0n) return;
    const state = { ...this.#mustState(), session };
    saveNodeState(this.#options.stateDir, state, this.#options.bundle);
    this.#state = state;
    this.#stream?.confirm(session);
  }

  #ack(version: bigint): void {
    if (version <= 0n) return;
    this.#inForce = version;
    this.#stream?.ack(version);
  }

  async #renew(): Promise<void> {
    const connection = await this.#online.connection();
    const renewed = await renewNodeSvid(
      connection,
      this.#mustState(),
      this.#synced.bundle,
      this.#options.clock.nowMs(),
      false,
    );
    this.#take({ ...this.#mustState(), ...renewed }, true);
    this.#options.log.info({ notAfterMs: renewed.svid.notAfterMs }, 'node SVID renewed');
    // The connection was proven with the old one and ends with it: whoever calls from now on waits for the next.
    this.#online.down();
    this.#stream?.handOver();
  }

  #noted(thrown: unknown): Error {
    const error = asError(thrown);
    this.#lastError = error.message;
    return error;
  }

  async #pause(attempt: number, signal?: AbortSignal): Promise<void> {
    const waitMs = Math.min(BACKOFF_FIRST_MS * 2 ** Math.min(attempt, 16), BACKOFF_MAX_MS) * (0.5 + Math.random() / 2);
    const signals = [this.#closing.signal, ...(signal === undefined ? [] : [signal])];
    await sleep(waitMs, undefined, { signal: AbortSignal.any(signals) }).catch(() => {});
    signal?.throwIfAborted();
  }
}

/** May the start wait for it to pass? */
function isPassing(error: ServerError, sinceMs: number): boolean {
  if (error.code === 'already-exists') return sinceMs < TAKEOVER_MS && error.reason === 'ATTEST_NODE_EXISTS';
  return error.code === 'unavailable';
}
