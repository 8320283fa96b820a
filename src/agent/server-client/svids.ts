/**
 * One X.509-SVID for each entry of this node, kept fresh: the key is made here and never leaves, the server signs, at half
 * its life comes the next. A revoked one is dropped at once. A certificate's story, between issue and the Workload API.
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
import type { Certificate } from '../../pki/certificate.ts';
import { createCsr } from '../../pki/csr.ts';
import { generateKey } from '../../pki/keys.ts';
import type { IdentityFeed, IdentitySnapshot, IssuedJwtSvid } from '../../workload/feed.ts';
import type { ServerClient, SyncChange } from './client.ts';
import { checkIssued } from './issued.ts';

/** Requests in one call. */
const BATCH = 128;
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 60_000;

export interface WorkloadSvidsOptions {
  readonly client: Pick<
    ServerClient,
    'trustDomain' | 'node' | 'bundles' | 'revocations' | 'entries' | 'onChange' | 'issue'
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
  readonly #due = new Set<string>();
  readonly #subscribers = new Set<() => void>();
  #flushing = false;
  #closed = false;

  /** Begins at once. */
  constructor(options: WorkloadSvidsOptions) {
    this.#options = options;
    this.#timers = options.timers ?? systemTimers;
    options.client.onChange((change) => this.#changed(change));
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
    const { client } = this.#options;
    const bundle = client.bundles.bundleOf(client.trustDomain);
    return {
      entries: client.entries(),
      svidOf: (entryId) => {
        const svid = this.#holdings.get(entryId)?.svid;
        return this.#isValid(svid) ? svid : undefined;
      },
      bundles: bundle === undefined ? [] : [bundle],
      crls: [],
    };
  }

  issueJwt(): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    return Promise.resolve(err('ISSUE_NOT_YOUR_ENTRY'));
  }

  /** Called after each change of an entry, an SVID or the bundle. */
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

  /** Dropping is done when this returns, so that an ack of the change means it; fetching goes on behind. */
  #changed(change: SyncChange): void {
    if (this.#closed) return;
    for (const entry of change.entries.removed) this.#forget(entry.id);
    for (const entry of change.entries.changed) this.#register(entry);
    if (change.snapshot || change.revocations.length > 0) this.#dropRevoked();
    // a refusal may have had to do with what just changed
    if (change.snapshot) for (const [id, holding] of this.#holdings) if (!this.#isValid(holding.svid)) this.#ask(id, 0);
    this.#tell();
  }

  #register(entry: RegistrationEntry): void {
    const known = this.#holdings.get(entry.id);
    if (known !== undefined) {
      const before = known.entry;
      known.entry = entry;
      if (before.spiffeId !== entry.spiffeId) this.#drop(known);
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
  }

  #drop(holding: Holding): void {
    holding.cancelDue();
    holding.cancelEnd();
    holding.svid = undefined;
    holding.subject = undefined;
  }

  #dropRevoked(): void {
    const { client, log } = this.#options;
    for (const [id, holding] of this.#holdings) {
      if (holding.subject === undefined || !client.revocations.isRevoked(holding.subject)) continue;
      log.warn(
        { entry: id, spiffeId: holding.entry.spiffeId, serial: holding.subject.serial },
        'SVID revoked, dropped',
      );
      this.#drop(holding);
      holding.refused = 'ISSUE_REVOKED';
      this.#ask(id, 0);
    }
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
    const bundle = client.bundles.bundleOf(client.trustDomain)!;
    const wanted = { spiffeId: entry.spiffeId, privateKey, node: node.spiffeId };
    const issued = result.ok ? checkIssued(result.value, bundle, wanted, clock.nowMs()) : result;
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
    this.#ask(entry.id, Math.max(dueMs - clock.nowMs(), RETRY_FIRST_MS));
    holding.cancelEnd = this.#timers.set(svid.notAfterMs - clock.nowMs(), () => this.#tell());
    audit.emit({
      kind: 'svid.received',
      source: { spiffeId: svid.spiffeId, identity: entry.identity, node: node.name },
      detail: { entry: entry.id, serial, notAfterMs: svid.notAfterMs },
    });
  }

  /** It may have been revoked between signing and now. */
  #checkStanding({ svid, leaf }: { svid: Svid; leaf: Certificate }) {
    const { serial, notBeforeMs, nodeBinding: node } = leaf;
    const subject: RevocationSubject = { spiffeId: svid.spiffeId, serial, node, notBeforeMs };
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
    for (const subscriber of [...this.#subscribers]) subscriber();
  }
}
