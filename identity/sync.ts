/**
 * One Sync stream for each live agent: a snapshot, then changes, each as one, and which version each agent says is in force on
 * its node, so that the server can tell when a revocation is so everywhere. A stream has at most one message on the way: who
 * reads slowly gets fewer and larger changes and costs no more than others.
 */
import { type ServerDuplexStream, status } from '@grpc/grpc-js';
import type { CertificateAuthority } from '../ca/api.ts';
import type { Bundle, SyncRequest, SyncStart } from '../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Logger } from '../src/base/log.ts';
import { systemTimers, type Timers } from '../src/base/timers.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName, TrustDomain } from '../src/model/ids.ts';
import type { Feed } from './feed.ts';
import type { Nodes } from './nodes.ts';
import { parsePeerAddresses } from './peer-addresses.ts';
import { Refusal, toServiceError } from './refusal.ts';
import type { Registry } from './registry.ts';
import type { Signer } from './signer.ts';
import type { NodeRecord } from './store.ts';
import { SyncContent } from './sync-content.ts';

/** How long the name of a node that just attested is kept for it before it syncs for the first time. */
const EXPECT_MS = 10_000;
/** An agent that takes nothing of what is on its way for so long is sent away. */
const STALL_MS = 30_000;
/** So is one that has not taken a whole change: what it holds up of earlier states is kept for it alone. */
const CHANGE_MS = 300_000;
/** What is not urgent waits this long for more of its kind, or as long as it took to tell everybody the last time. */
const GATHER_MS = 20;
/** Telling everybody goes in steps of so long, with twice as much between them for other work: with 1,000 agents it takes a while. */
const STEP_MS = 2;

/** Bundles of federated trust domains, as agents get them. */
export interface FederatedSource {
  list(): readonly TrustDomain[];
  /** undefined: there is none any more. */
  bundleOf(trustDomain: TrustDomain): Bundle | undefined;
}

export interface SyncOptions {
  readonly feed: Feed;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly ca: CertificateAuthority;
  readonly signer: Signer;
  readonly federated?: FederatedSource;
  readonly clock: Clock;
  readonly timers?: Timers;
  readonly log: Logger;
  readonly audit: AuditSink;
}

/** Messages are handed over encoded: see sync-messages.ts. */
export type SyncStream = ServerDuplexStream<SyncRequest, Buffer>;

interface Session {
  readonly node: NodeName;
  readonly stream: SyncStream;
  readonly sinceMs: number;
  /** See NodeRecord.sessionIssued. */
  readonly number: number;
  acked: number;
  /** The agent has been sent, or is being sent, all up to this version. */
  sent: number;
  /** What of that is still to be written; the first of them is on its way. */
  parts: readonly Buffer[];
  next: number;
  /** When the message that is on its way was written; undefined: none is. */
  writtenMs: number | undefined;
  /** When the first message of `parts` was written. */
  begunMs: number;
}

export interface InForce {
  readonly inForce: readonly NodeName[];
  readonly missing: readonly NodeName[];
}

export class SyncHub {
  readonly #options: SyncOptions;
  readonly #timers: Timers;
  readonly #content: SyncContent;
  readonly #sessions = new Map<NodeName, Session>();
  readonly #waiting = new Set<() => void>();
  readonly #expected = new Map<NodeName, number>();
  readonly #unwatch: () => void;
  /** There while a round of telling everybody is planned or under way. */
  #cancelRound: (() => void) | undefined;
  /** A round is under way, and there is news that those had no part in who were told first. */
  #goesOn = false;
  #lastRoundMs = 0;
  #cancelStallCheck: () => void;

  constructor(options: SyncOptions) {
    this.#options = options;
    this.#timers = options.timers ?? systemTimers;
    this.#content = new SyncContent(options);
    this.#unwatch = options.feed.watch((version, change) => {
      this.#content.add(version, change);
      const { revocations, removedNodes, bundle, crls, entries = [], removedEntries = [] } = change;
      // what takes something away does not wait
      if (revocations !== undefined || removedNodes !== undefined || bundle === true || crls === true) this.#tellAll();
      else {
        // a workload may be waiting for its entry
        for (const node of new Set([...entries, ...removedEntries].map((entry) => entry.node))) this.#tell(node);
        this.#planRound();
      }
    });
    this.#cancelStallCheck = this.#timers.set(STALL_MS / 6, () => this.#checkStalls());
  }

  /** Signs and encodes the whole identity table, so that the first agents find it done. */
  prepare(): void {
    this.#content.prepare();
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
    const there = new Set(inForce);
    const missing = this.#options.nodes.members().filter((node) => !there.has(node.name));
    return { inForce: inForce.sort(), missing: missing.map((node) => node.name) };
  }

  close(): void {
    this.#unwatch();
    this.#cancelRound?.();
    this.#cancelStallCheck();
    for (const { stream } of this.#sessions.values()) stream.end();
    this.#sessions.clear();
    this.#wake();
  }

  #begin(node: NodeRecord, stream: SyncStream, start: SyncStart): Session {
    const { nodes, audit, feed, clock } = this.#options;
    if (this.#sessions.has(node.name)) throw new Refusal('ATTEST_NODE_EXISTS', status.ALREADY_EXISTS);
    if (!nodes.isLastSession(node.name, start.session)) {
      audit.emit({ kind: 'node.attest_refused', reason: 'ATTEST_NODE_CLONED', source: { node: node.name } });
      throw new Refusal('ATTEST_NODE_CLONED', status.PERMISSION_DENIED);
    }
    nodes.setPeerAddresses(node.name, parsePeerAddresses(start.peerAddresses));
    const number = nodes.beginSession(node.name, start.session);
    const session: Session = {
      node: node.name,
      stream,
      sinceMs: clock.nowMs(),
      number,
      acked: 0,
      sent: feed.version,
      parts: [],
      next: 0,
      writtenMs: undefined,
      begunMs: 0,
    };
    this.#sessions.set(node.name, session);
    this.#expected.delete(node.name);
    this.#send(session, this.#content.snapshot(node.name, number));
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

  #planRound(): void {
    this.#goesOn = this.#cancelRound !== undefined;
    this.#cancelRound ??= this.#timers.set(Math.max(GATHER_MS, this.#lastRoundMs), () => this.#round());
  }

  /** Everybody in turn, with pauses. */
  #round(): void {
    this.#goesOn = false;
    const begunMs = performance.now();
    const nodes = this.live();
    let next = 0;
    const step = () => {
      const stepMs = performance.now();
      while (next < nodes.length && performance.now() - stepMs < STEP_MS) this.#tell(nodes[next++]!);
      if (next < nodes.length) {
        this.#cancelRound = this.#timers.set(STEP_MS * 2, step);
        return;
      }
      this.#cancelRound = undefined;
      this.#lastRoundMs = performance.now() - begunMs;
      this.#forgetTold();
      if (this.#goesOn) this.#planRound();
    };
    step();
  }

  /** At once, whatever else there is to do. */
  #tellAll(): void {
    this.#cancelRound?.();
    this.#cancelRound = undefined;
    for (const node of this.live()) this.#tell(node);
    this.#forgetTold();
  }

  #forgetTold(): void {
    let slowest = this.#options.feed.version;
    for (const { sent } of this.#sessions.values()) slowest = Math.min(slowest, sent);
    this.#content.forget(slowest);
  }

  /** Everything it has not been sent, unless something is on its way to it: then when that is written. */
  #tell(node: NodeName): void {
    const session = this.#sessions.get(node);
    const { version } = this.#options.feed;
    if (session === undefined || session.writtenMs !== undefined || session.sent === version) return;
    const parts = this.#content.since(session.sent, node);
    if (parts === undefined) {
      this.disconnect(node, new Refusal('PEER_SEND_QUEUE_FULL', status.RESOURCE_EXHAUSTED));
      return;
    }
    session.sent = version;
    this.#send(session, parts);
  }

  #send(session: Session, parts: readonly Buffer[]): void {
    session.parts = parts;
    session.next = 0;
    session.begunMs = this.#bootMs();
    this.#writeNext(session);
  }

  #writeNext(session: Session): void {
    if (this.#sessions.get(session.node) !== session) return;
    const part = session.parts[session.next];
    if (part === undefined) {
      session.parts = [];
      session.writtenMs = undefined;
      this.#tell(session.node);
      return;
    }
    session.next += 1;
    session.writtenMs = this.#bootMs();
    // called when HTTP/2 has sent it, which the reader's window decides
    session.stream.write(part, () => this.#writeNext(session));
  }

  #bootMs(): number {
    return Number(this.#options.clock.bootNs() / 1_000_000n);
  }

  #checkStalls(): void {
    const now = this.#bootMs();
    for (const { node, writtenMs, begunMs } of [...this.#sessions.values()]) {
      if (writtenMs === undefined || (now - writtenMs < STALL_MS && now - begunMs < CHANGE_MS)) continue;
      this.disconnect(node, new Refusal('PEER_SEND_QUEUE_FULL', status.RESOURCE_EXHAUSTED));
    }
    this.#cancelStallCheck = this.#timers.set(STALL_MS / 6, () => this.#checkStalls());
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
