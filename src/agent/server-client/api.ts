/** The identity server as the rest of the agent has it: what it said, and what can be asked of it. */
import type { KeyObject } from 'node:crypto';
import type { Clock } from '../../base/clock.ts';
import type { Result } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { AuditSink } from '../../model/audit-event.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type {
  IdentityTable,
  NodeInfo,
  NodeTable,
  RevocationTable,
  Svid,
  TrustBundle,
  TrustBundles,
} from '../../model/identity.ts';
import type { NodeName, TrustDomain } from '../../model/ids.ts';
import type { IssuedJwtSvid } from '../../workload/feed.ts';
import type { OwnBundle } from './bundles.ts';
import type { SyncListener, UrgentListener } from './changes.ts';

export interface ServerClientOptions {
  /** Of the identity servers, "IP:port" or "[IPv6]:port". */
  readonly addresses: readonly string[];
  readonly trustDomain: TrustDomain;
  /** The trust bundle as handed to this node, DER. There is no trust on first use. */
  readonly bundle: readonly Buffer[];
  readonly nodeName: NodeName;
  /** Read when it is needed. Undefined: there is none. */
  readonly joinToken?: () => Promise<string | undefined>;
  /** A certificate with its key that says which node this is; then no token is asked for. Read when it is needed. */
  readonly x509pop?: () => Promise<{ readonly chain: readonly Buffer[]; readonly privateKey: KeyObject }>;
  /** Directory of mode 0700 with the node's key, SVID, id and incarnation, so that a restart needs no token. */
  readonly stateDir: string;
  /** Where peers reach this node: "IP:port" or "[IPv6]:port". */
  readonly peerAddresses: readonly string[];
  readonly clock: Clock;
  /** Of this boot of the machine. Left out: the kernel's. */
  readonly bootId?: string;
  readonly log: Logger;
  /** Told of what the server sent and this node refused. */
  readonly audit: AuditSink;
  /** Told, each time, why the start waits: a sentence. */
  waiting?(why: string): void;
  /** Gives up waiting for the server at the start. */
  readonly signal?: AbortSignal;
}

export interface ServerClientStatus {
  readonly addresses: readonly string[];
  readonly connected: boolean;
  /** Unix ms of the last message; undefined: none yet. */
  readonly lastSyncMs: number | undefined;
  /** Of what the tables hold, and of what was acked as in force. */
  readonly version: bigint;
  readonly inForceVersion: bigint;
  readonly nodeSvidNotAfterMs: number;
  /** Items that the server sent and that did not check. */
  readonly refusedItems: number;
  readonly lastError: string | undefined;
}

export interface ServerClient {
  readonly trustDomain: TrustDomain;
  readonly node: { readonly info: NodeInfo; svid(): Svid };
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  /** Of the own trust domain: no other vouches for anything that is proven here. */
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  /** The same object until something of it changes. */
  ownBundle(): OwnBundle;
  /** For workloads that federate, by name: each vouches for its own trust domain and for no other. */
  federatedBundles(): readonly TrustBundle[];
  /** Of the own trust domain, DER. */
  crls(): readonly Buffer[];
  entries(): readonly RegistrationEntry[];
  /**
   * The listener is told at once of all there is, then of every change, in order, one at a time. A version is acked, as in
   * force on this node, only when all listeners' promises for it have resolved; before there is a listener nothing is.
   */
  onChange(listener: SyncListener): void;
  /** Told of revocations and of other authorities at once, whatever changes before them still wait for; then that is told as any change. */
  onUrgent(listener: UrgentListener): void;
  /** Called after each renewal: the next TLS handshake shows the new SVID. */
  onNodeSvid(listener: () => void): void;
  /**
   * Called once, when this process can no longer be the node: another holder of its certificate is there, or the machine's life
   * is not the one it began in. Nothing may be vouched for any more; the way back is a new start.
   */
  onBarred(listener: (reason: ReasonCode) => void): void;
  /** One result for each request, in order. @throws ServerError if the server cannot be asked. */
  issue(requests: readonly { entryId: string; csr: Buffer }[]): Promise<Result<Buffer[], ReasonCode>[]>;
  /** @throws ServerError if the server cannot be asked, or says no: then with its reason */
  issueJwt(entryId: string, audience: readonly string[]): Promise<IssuedJwtSvid>;
  putCheckpoint(text: Buffer): Promise<void>;
  status(): ServerClientStatus;
  close(): Promise<void>;
}
