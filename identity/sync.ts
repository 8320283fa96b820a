/**
 * One Sync stream for each live agent: a snapshot, then every change as one message, and which version each agent says is
 * in force on its node, so that the server can tell when a revocation is so everywhere.
 */
import { type ServerDuplexStream, status } from '@grpc/grpc-js';
import type { CaBundle, CertificateAuthority } from '../ca/api.ts';
import {
  type Bundle,
  type Entry,
  type Node,
  type Revocation as RevocationMessage,
  type SyncRequest,
  SyncResponse,
  type SyncStart,
} from '../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Logger } from '../src/base/log.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { Revocation } from '../src/model/identity.ts';
import type { NodeName } from '../src/model/ids.ts';
import type { Change, Feed, RegisteredEntry } from './feed.ts';
import type { Nodes } from './nodes.ts';
import { parsePeerAddresses } from './peer-addresses.ts';
import { Refusal, toServiceError } from './refusal.ts';
import type { Registry } from './registry.ts';
import type { Signer } from './signer.ts';
import type { NodeRecord } from './store.ts';

/** An agent that has not acked this many versions is not following: it is sent away and begins with a snapshot. */
const MAX_UNACKED = 10_000;
/** How long the name of a node that just attested is kept for it before it syncs for the first time. */
const EXPECT_MS = 10_000;

export interface SyncOptions {
  readonly feed: Feed;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly ca: CertificateAuthority;
  readonly signer: Signer;
  readonly clock: Clock;
  readonly log: Logger;
  readonly audit: AuditSink;
}

type SyncStream = ServerDuplexStream<SyncRequest, SyncResponse>;

interface Session {
  readonly node: NodeName;
  readonly stream: SyncStream;
  readonly sinceMs: number;
  /** See NodeRecord.sessionIssued. */
  readonly number: number;
  acked: number;
  sent: number;
}

export interface InForce {
  readonly inForce: readonly NodeName[];
  readonly missing: readonly NodeName[];
}

export class SyncHub {
  readonly #options: SyncOptions;
  readonly #sessions = new Map<NodeName, Session>();
  readonly #waiting = new Set<() => void>();
  readonly #expected = new Map<NodeName, number>();

  constructor(options: SyncOptions) {
    this.#options = options;
    options.feed.watch((version, change) => {
      for (const session of this.#sessions.values()) this.#send(session, this.#delta(session.node, version, change));
    });
  }

  /** Is the name held: by a stream, or by an agent that attested just now and is about to open one? */
  isLive(node: NodeName): boolean {
    const expectedMs = this.#expected.get(node);
    const expected = expectedMs !== undefined && this.#options.clock.nowMs() - expectedMs < EXPECT_MS;
    return expected || this.#sessions.has(node);
  }

  expect(node: NodeName): void {
    this.#expected.set(node, this.#options.clock.nowMs());
  }

  live(): NodeName[] {
    return [...this.#sessions.keys()];
  }

  session(node: NodeName): { readonly sinceMs: number; readonly acked: number } | undefined {
    return this.#sessions.get(node);
  }

  /** Runs one agent's stream. `caller` is asked again for each message: a node may be taken back in between. */
  serve(stream: SyncStream, caller: () => NodeRecord): void {
    let session: Session | undefined;
    const leave = () => {
      if (session !== undefined && this.#sessions.get(session.node) === session) this.#sessions.delete(session.node);
      session = undefined;
      this.#wake();
    };
    const refuse = (thrown: unknown) => {
      leave();
      stream.emit('error', toServiceError(thrown, this.#options.log));
    };
    stream.on('data', ({ kind }: SyncRequest) => {
      try {
        const node = caller();
        if (kind?.$case === 'start' && session === undefined) session = this.#begin(node, stream, kind.value);
        else if (kind?.$case === 'session' && session !== undefined) this.#confirm(session, kind.value.session);
        else if (kind?.$case === 'ack' && session !== undefined) this.#ack(session, kind.value.version);
        else throw new Refusal('PEER_FRAME_UNEXPECTED', status.INVALID_ARGUMENT);
      } catch (thrown) {
        refuse(thrown);
      }
    });
    stream.on('end', () => {
      leave();
      stream.end();
    });
    stream.on('cancelled', leave);
    stream.on('close', leave);
    stream.on('error', leave);
  }

  /** Ends a node's stream: its certificate no longer lets it in. */
  disconnect(node: NodeName, refusal: Refusal): void {
    this.#expected.delete(node);
    const session = this.#sessions.get(node);
    if (session === undefined) return;
    this.#sessions.delete(node);
    session.stream.emit('error', toServiceError(refusal, this.#options.log));
    this.#wake();
  }

  /**
   * Resolves when every agent that is live now has acked the version, or after `waitMs`. One whose stream breaks off is
   * waited for: it comes back, and with a snapshot.
   */
  async inForce(version: number, waitMs: number): Promise<InForce> {
    const asked = this.live();
    const deadline = performance.now() + waitMs;
    for (;;) {
      const left = deadline - performance.now();
      if (asked.every((node) => (this.#sessions.get(node)?.acked ?? 0) >= version) || left <= 0) break;
      await this.#change(left);
    }
    const inForce = [...this.#sessions.values()].filter((s) => s.acked >= version).map((s) => s.node);
    const missing = this.#options.nodes.members().filter((node) => !inForce.includes(node.name));
    return { inForce: inForce.sort(), missing: missing.map((node) => node.name) };
  }

  close(): void {
    for (const { stream } of this.#sessions.values()) stream.end();
    this.#sessions.clear();
    this.#wake();
  }

  #begin(node: NodeRecord, stream: SyncStream, start: SyncStart): Session {
    const { nodes, audit } = this.#options;
    if (this.#sessions.has(node.name)) throw new Refusal('ATTEST_NODE_EXISTS', status.ALREADY_EXISTS);
    if (!nodes.isLastSession(node.name, start.session)) {
      audit.emit({ kind: 'node.attest_refused', reason: 'ATTEST_NODE_CLONED', source: { node: node.name } });
      throw new Refusal('ATTEST_NODE_CLONED', status.PERMISSION_DENIED);
    }
    nodes.setPeerAddresses(node.name, parsePeerAddresses(start.peerAddresses));
    const session: Session = {
      node: node.name,
      stream,
      sinceMs: this.#options.clock.nowMs(),
      number: nodes.beginSession(node.name, start.session),
      acked: 0,
      sent: this.#options.feed.version,
    };
    this.#sessions.set(node.name, session);
    this.#expected.delete(node.name);
    stream.write({ ...this.#snapshot(node.name), session: BigInt(session.number) });
    return session;
  }

  #confirm(session: Session, number: bigint): void {
    if (number !== BigInt(session.number)) throw new Refusal('PEER_FRAME_UNEXPECTED', status.INVALID_ARGUMENT);
    this.#options.nodes.confirmSession(session.node, session.number);
  }

  #ack(session: Session, version: bigint): void {
    if (version > BigInt(session.sent)) throw new Refusal('PEER_FRAME_UNEXPECTED', status.INVALID_ARGUMENT);
    session.acked = Math.max(session.acked, Number(version));
    this.#wake();
  }

  #send(session: Session, message: SyncResponse): void {
    session.sent = Number(message.version);
    if (session.sent - session.acked > MAX_UNACKED && session.acked > 0) {
      this.disconnect(session.node, new Refusal('PEER_IDLE_TIMEOUT', status.RESOURCE_EXHAUSTED));
      return;
    }
    session.stream.write(message);
  }

  #snapshot(node: NodeName): SyncResponse {
    const { feed, registry, nodes, ca, signer } = this.#options;
    return SyncResponse.create({
      version: BigInt(feed.version),
      snapshot: true,
      entries: registry.entriesOf(node).map((entry) => this.#entry(entry)),
      identities: registry.rows().map((row) => signer.sign(row)),
      nodes: nodes.members().map((member) => this.#node(member)),
      bundle: bundleMessage(ca.bundle()),
      revocations: ca.revocations().map(revocationMessage),
      signerChain: [...signer.svid.chain],
      crls: { crls: ca.crls() },
    });
  }

  #delta(node: NodeName, version: number, change: Change): SyncResponse {
    const { registry, signer, ca } = this.#options;
    const rows = change.signer === true ? registry.rows() : (change.rows ?? []);
    const gone = (change.removedEntries ?? []).filter((entry) => entry.node === node);
    return SyncResponse.create({
      version: BigInt(version),
      entries: (change.entries ?? []).filter((entry) => entry.node === node).map((entry) => this.#entry(entry)),
      removedEntryIds: gone.map((entry) => entry.id),
      identities: rows.map((row) => signer.sign(row)),
      removedIdentities: [...(change.removedRows ?? [])],
      nodes: (change.nodes ?? []).map((member) => this.#node(member)),
      removedNodes: [...(change.removedNodes ?? [])],
      revocations: (change.revocations ?? []).map(revocationMessage),
      signerChain: change.signer === true ? [...signer.svid.chain] : [],
      ...(change.bundle === true ? { bundle: bundleMessage(ca.bundle()) } : {}),
      ...(change.crls === true ? { crls: { crls: ca.crls() } } : {}),
    });
  }

  #entry(entry: RegisteredEntry): Entry {
    return {
      id: entry.id,
      spiffeId: entry.spiffeId,
      parentId: this.#options.nodes.spiffeIdOf(entry.node),
      selectors: [...entry.selectors],
      x509TtlSeconds: entry.ttlSeconds,
      dnsNames: [...entry.dnsNames],
      hint: entry.hint,
      securityIdentity: entry.identity,
      labels: { ...entry.labels },
      jwtTtlSeconds: 0,
      federatesWith: [],
    };
  }

  #node(node: NodeRecord): Node {
    return {
      name: node.name,
      spiffeId: this.#options.nodes.spiffeIdOf(node.name),
      nodeId: node.nodeId,
      incarnation: BigInt(node.incarnation),
      peerAddresses: [...node.peerAddresses],
      prefixes: [...this.#options.nodes.prefixesOf(node.name)],
    };
  }

  #change(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      this.#waiting.add(done);
    });
  }

  #wake(): void {
    for (const done of [...this.#waiting]) done();
  }
}

function bundleMessage(bundle: CaBundle): Bundle {
  return {
    certificates: bundle.authorities,
    sequence: bundle.sequence,
    jwtAuthorities: bundle.jwtAuthorities.map(({ keyId, publicKey, expiresAtMs, tainted }) => ({
      keyId,
      publicKey,
      expiresAt: BigInt(Math.floor((expiresAtMs ?? 0) / 1000)),
      tainted: tainted ?? false,
    })),
    refreshHintSeconds: bundle.refreshHintSeconds,
    taintedKeyIds: bundle.taintedKeyIds,
  };
}

function revocationMessage({ sequence, what, issuedUntil, reason }: Revocation): RevocationMessage {
  const named: RevocationMessage['what'] =
    'spiffeId' in what
      ? { $case: 'spiffeId', value: what.spiffeId }
      : 'serial' in what
        ? { $case: 'serial', value: what.serial }
        : 'node' in what
          ? { $case: 'node', value: what.node }
          : { $case: 'authority', value: what.authority };
  return { sequence, what: named, issuedUntil: BigInt(issuedUntil), reason };
}
