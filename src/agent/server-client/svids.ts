/**
 * One X.509-SVID for each entry of this node, kept fresh: the key is made here and never leaves, the server signs, at half
 * its life comes the next. What is revoked, or what the bundle no longer vouches for, is dropped at once; what a tainted key
 * signed is replaced at once. A certificate's story, between issue and the Workload API.
 */
import type { KeyObject } from 'node:crypto';
import type { Clock } from '../../base/clock.ts';
import { asError, err, ok, type Result } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { type ReasonCode, reasonCodes } from '../../base/registry/reason-codes.ts';
import { systemTimers, type Timers } from '../../base/timers.ts';
import type { AuditSink } from '../../model/audit-event.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type { RevocationSubject, Svid, SvidSource } from '../../model/identity.ts';
import type { SecurityIdentity } from '../../model/ids.ts';
import { nodeNameOf } from '../../model/spiffe-id.ts';
import { createCsr } from '../../pki/csr.ts';
import { generateKey } from '../../pki/keys.ts';
import { verifyX509Svid } from '../../pki/verify.ts';
import type { IdentityFeed, IdentitySnapshot, IssuedJwtSvid } from '../../workload/feed.ts';
import type { OwnBundle } from './bundles.ts';
import type { ServerClient, SyncChange } from './client.ts';
import { checkIssued, type IssuedChain } from './issued.ts';
import { JwtSvids } from './jwt-svids.ts';
import { renewalSpreadMs } from './renewal.ts';

/** Requests in one call. */
const BATCH = 128;
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 60_000;

export interface WorkloadSvidsOptions {
  readonly client: Pick<
    ServerClient,
    | 'node'
    | 'identities'
    | 'nodes'
    | 'ownBundle'
    | 'federatedBundles'
    | 'crls'
    | 'revocations'
    | 'entries'
    | 'onChange'
    | 'onUrgent'
    | 'issue'
    | 'issueJwt'
  >;
  readonly clock: Clock;
  readonly log: Logger;
  readonly audit: AuditSink;
  readonly timers?: Timers;
}

/** What is held for one entry. */
interface Holding {
  entry: RegistrationEntry;
  svid: Svid | undefined;
  subject: RevocationSubject | undefined;
  /** Why the last request was refused, if it was. */
  refused: ReasonCode | undefined;
  failures: number;
  cancelDue: () => void;
  cancelEnd: () => void;
}

export class WorkloadSvids implements SvidSource, IdentityFeed {
  readonly #options: WorkloadSvidsOptions;
  readonly #timers: Timers;
  readonly #holdings = new Map<string, Holding>();
  readonly #jwts: JwtSvids;
  readonly #due = new Set<string>();
  readonly #subscribers = new Set<() => void>();
  /** What all that is held was judged by. */
  #own: OwnBundle;
  /** Until the next change: whoever composes an answer from it, however slowly, has SVIDs and the bundle that vouches for them. */
  #snapshot: IdentitySnapshot | undefined;
  #flushing = false;
  #closed = false;

  /** Begins at once. */
  constructor(options: WorkloadSvidsOptions) {
    const { client, clock, log } = options;
    this.#options = options;
    this.#timers = options.timers ?? systemTimers;
    this.#own = client.ownBundle();
    this.#jwts = new JwtSvids({
      ask: (entryId, audience) => client.issueJwt(entryId, audience),
      bundle: () => client.ownBundle().bundle,
      clock,
      log,
    });
    client.onUrgent((change) => this.#takenBack(change));
    client.onChange((change) => this.#changed(change));
  }

  /** What this node can prove with now. AUTH_NO_SVID, or AUTH_REVOKED if that is why. */
  svidOf(identity: SecurityIdentity): Result<Svid, ReasonCode> {
    let reason: ReasonCode = 'AUTH_NO_SVID';
    for (const { entry, svid, refused } of this.#holdings.values()) {
      if (entry.identity !== identity) continue;
      if (this.#isValid(svid)) return ok(svid);
      if (refused === 'ISSUE_REVOKED') reason = 'AUTH_REVOKED';
    }
    return err(reason);
  }

  snapshot(): IdentitySnapshot {
    this.#snapshot ??= this.#compose();
    return this.#snapshot;
  }

  issueJwt(entryId: string, audience: readonly string[]): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    const entry = this.#holdings.get(entryId)?.entry;
    if (entry === undefined || this.#closed) return Promise.resolve(err('ISSUE_NOT_YOUR_ENTRY'));
    return this.#jwts.issue(entry, audience);
  }

  /** Called after each change of an entry, an SVID, a bundle or a revocation list. */
  subscribe(changed: () => void): () => void {
    this.#subscribers.add(changed);
    return () => this.#subscribers.delete(changed);
  }

  entries(): {
    readonly entry: RegistrationEntry;
    readonly svid: Svid | undefined;
    readonly refused: ReasonCode | undefined;
  }[] {
    return [...this.#holdings.values()].map(({ entry, svid, refused }) => ({ entry, svid, refused }));
  }

  /** How many JWT-SVIDs are held, and when the first and the last of them end, Unix ms. */
  jwtEnds(): ReturnType<JwtSvids['ends']> {
    return this.#jwts.ends();
  }

  close(): void {
    this.#closed = true;
    for (const holding of this.#holdings.values()) {
      holding.cancelDue();
      holding.cancelEnd();
    }
  }

  #isValid(svid: Svid | undefined): svid is Svid {
    return svid !== undefined && this.#options.clock.nowMs() <= svid.notAfterMs;
  }

  #compose(): IdentitySnapshot {
    const { client } = this.#options;
    const held = new Map([...this.#holdings].map(([id, { svid }]) => [id, svid]));
    return {
      entries: client.entries(),
      svidOf: (entryId) => {
        const svid = held.get(entryId);
        return this.#isValid(svid) ? svid : undefined;
      },
      bundles: [this.#own.bundle, ...client.federatedBundles()],
      crls: client.crls(),
    };
  }

  /** Before the change has its turn, and whatever changes before it still wait for: nothing is served that was taken back. */
  #takenBack({ revocations }: SyncChange): void {
    if (this.#closed) return;
    const self = nodeNameOf(this.#options.client.node.info.spiffeId);
    for (const { what } of revocations) {
      for (const [id, { entry }] of this.#holdings) {
        const isConcerned =
          'spiffeId' in what ? what.spiffeId === entry.spiffeId : 'node' in what && what.node === self;
        if (isConcerned) this.#jwts.forget(id);
      }
    }
    this.#judge(revocations.some(({ what }) => 'authority' in what) ? this.#spreadMs() : 0);
    this.#tell();
  }

  /** Dropping is done when this returns, so that an ack of the change means it; fetching goes on behind. */
  #changed(change: SyncChange): void {
    if (this.#closed) return;
    for (const entry of change.entries.removed) this.#forget(entry.id);
    for (const entry of change.entries.changed) this.#register(entry);
    this.#judge(0);
    // a refusal may have had to do with what just changed
    if (change.snapshot) for (const [id, holding] of this.#holdings) if (!this.#isValid(holding.svid)) this.#ask(id, 0);
    this.#tell();
  }

  #register(entry: RegistrationEntry): void {
    const known = this.#holdings.get(entry.id);
    if (known !== undefined) {
      const before = known.entry;
      known.entry = entry;
      if (before.spiffeId !== entry.spiffeId) {
        this.#drop(known);
        this.#jwts.forget(entry.id);
      }
      const sameDns = before.dnsNames.join() === entry.dnsNames.join();
      if (before.spiffeId === entry.spiffeId && before.ttlSeconds === entry.ttlSeconds && sameDns && known.svid) return;
    } else {
      const nothing = { svid: undefined, subject: undefined, refused: undefined, failures: 0 };
      this.#holdings.set(entry.id, { entry, ...nothing, cancelDue: () => {}, cancelEnd: () => {} });
    }
    this.#ask(entry.id, 0);
  }

  #forget(id: string): void {
    const holding = this.#holdings.get(id);
    if (holding === undefined) return;
    this.#drop(holding);
    this.#holdings.delete(id);
    this.#due.delete(id);
    this.#jwts.forget(id);
  }

  #drop(holding: Holding): void {
    holding.cancelDue();
    holding.cancelEnd();
    holding.svid = undefined;
    holding.subject = undefined;
  }

  /** All that is held, by the revocations and the bundle of now. `waitMs`: before what went is asked for anew. */
  #judge(waitMs: number): void {
    const { client, clock, log } = this.#options;
    const own = client.ownBundle();
    const isNew = own !== this.#own;
    this.#own = own;
    if (isNew) this.#jwts.bundleChanged();
    const spreadMs = isNew ? Math.max(waitMs, this.#spreadMs()) : waitMs;
    for (const [id, holding] of this.#holdings) {
      const { svid, subject, entry } = holding;
      if (svid === undefined || subject === undefined) continue;
      const isRevoked = client.revocations.isRevoked(subject);
      const verdict = isNew ? verifyX509Svid(svid.chain, own.bundle, clock.nowMs()) : undefined;
      if (isRevoked || verdict?.ok === false) {
        const reason = isRevoked ? 'ISSUE_REVOKED' : verdict?.ok === false ? verdict.error : 'CERT_UNTRUSTED';
        log.warn({ entry: id, spiffeId: entry.spiffeId, serial: subject.serial, reason }, 'SVID dropped');
        this.#drop(holding);
        holding.refused = reason;
        this.#ask(id, spreadMs);
      } else if (isNew && isTainted(subject, own)) {
        // Served until the next one is there: the bundle still vouches for it.
        this.#ask(id, spreadMs);
      }
    }
  }

  /** The same for all of this node's, so that they are asked for together. */
  #spreadMs(): number {
    return renewalSpreadMs(this.#options.client);
  }

  /** Asks for an SVID after `waitMs`; what is due together is asked together. */
  #ask(id: string, waitMs: number): void {
    const holding = this.#holdings.get(id);
    if (holding === undefined || this.#closed) return;
    holding.cancelDue();
    if (waitMs > 0) {
      holding.cancelDue = this.#timers.set(waitMs, () => this.#ask(id, 0));
      return;
    }
    this.#due.add(id);
    if (!this.#flushing) {
      this.#flushing = true;
      setImmediate(() => void this.#flush());
    }
  }

  async #flush(): Promise<void> {
    while (this.#due.size > 0 && !this.#closed) {
      const ids = [...this.#due].slice(0, BATCH);
      for (const id of ids) this.#due.delete(id);
      const asked = ids.flatMap((id) => {
        const entry = this.#holdings.get(id)?.entry;
        return entry === undefined ? [] : [{ entry, privateKey: generateKey() }];
      });
      await this.#request(asked);
    }
    this.#flushing = false;
  }

  async #request(asked: readonly { entry: RegistrationEntry; privateKey: KeyObject }[]): Promise<void> {
    const { client, log } = this.#options;
    try {
      const requests = asked.map(({ entry, privateKey }) => ({ entryId: entry.id, csr: createCsr(privateKey) }));
      const results = await client.issue(requests);
      asked.forEach(({ entry, privateKey }, i) => {
        this.#received(entry, privateKey, results[i]!);
      });
    } catch (thrown) {
      log.warn({ problem: asError(thrown).message, entries: asked.length }, 'SVIDs could not be asked for yet');
      for (const { entry } of asked) this.#failed(entry.id);
    }
    this.#tell();
  }

  #received(entry: RegistrationEntry, privateKey: KeyObject, result: Result<Buffer[], ReasonCode>): void {
    const { client, clock, log, audit } = this.#options;
    const holding = this.#holdings.get(entry.id);
    // the entry changed while its certificate was on the way
    if (holding === undefined || this.#closed) return;
    if (holding.entry.spiffeId !== entry.spiffeId) {
      this.#ask(entry.id, 0);
      return;
    }
    const node = client.node.info;
    const wanted = { spiffeId: entry.spiffeId, privateKey, node: node.spiffeId };
    const issued = result.ok ? checkIssued(result.value, this.#own.bundle, wanted, clock.nowMs()) : result;
    const checked = issued.ok ? this.#checkStanding(issued.value) : issued;
    if (!checked.ok) {
      if (holding.refused !== checked.error) {
        log.warn({ entry: entry.id, reason: checked.error, why: reasonCodes[checked.error] }, 'no SVID');
        const source = { spiffeId: entry.spiffeId, identity: entry.identity, node: node.name };
        audit.emit({ kind: 'svid.refused', reason: checked.error, source, detail: { entry: entry.id } });
      }
      holding.refused = checked.error;
      this.#failed(entry.id);
      return;
    }
    const { svid, subject } = checked.value;
    const { serial, notBeforeMs } = subject;
    this.#drop(holding);
    holding.svid = svid;
    holding.subject = subject;
    holding.refused = undefined;
    holding.failures = 0;
    const life = svid.notAfterMs - notBeforeMs;
    const dueMs = notBeforeMs + life * (0.45 + Math.random() * 0.1);
    // Signed before the server let go of the key: there is a better one soon.
    const waitMs = isTainted(subject, this.#own) ? RETRY_MAX_MS * (0.5 + Math.random()) : dueMs - clock.nowMs();
    this.#ask(entry.id, Math.max(waitMs, RETRY_FIRST_MS));
    holding.cancelEnd = this.#timers.set(svid.notAfterMs - clock.nowMs(), () => this.#tell());
    audit.emit({
      kind: 'svid.received',
      source: { spiffeId: svid.spiffeId, identity: entry.identity, node: node.name },
      detail: { entry: entry.id, serial, notAfterMs: svid.notAfterMs },
    });
  }

  /** It may have been revoked between signing and now. */
  #checkStanding({ svid, leaf, authorities }: IssuedChain) {
    const { serial, notBeforeMs, nodeBinding: node } = leaf;
    const subject: RevocationSubject = { spiffeId: svid.spiffeId, serial, node, notBeforeMs, authorities };
    return this.#options.client.revocations.isRevoked(subject) ? err('ISSUE_REVOKED' as const) : ok({ svid, subject });
  }

  /** What is held stays until it ends. */
  #failed(id: string): void {
    const holding = this.#holdings.get(id);
    if (holding === undefined) return;
    const waitMs = Math.min(RETRY_FIRST_MS * 2 ** Math.min(holding.failures, 16), RETRY_MAX_MS);
    holding.failures += 1;
    this.#ask(id, waitMs * (0.5 + Math.random() / 2));
  }

  #tell(): void {
    this.#snapshot = undefined;
    for (const subscriber of [...this.#subscribers]) subscriber();
  }
}

function isTainted({ authorities = [] }: RevocationSubject, { tainted }: OwnBundle): boolean {
  return authorities.some((id) => tainted.has(id));
}
