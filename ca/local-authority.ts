/** The authority of one process: issuing, revoking, rotating and listing, each by the part whose work it is; and its upkeep by the clock. */
import type { DatabaseSync } from 'node:sqlite';
import { asError, CountersignError, err, ok } from '../src/base/errors.ts';
import { systemTimers } from '../src/base/timers.ts';
import type { Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import { parseCertificate } from '../src/pki/certificate.ts';
import type {
  CaChange,
  CertificateAuthority,
  CertificateAuthorityOptions,
  DownstreamRequest,
  NodeSvidRequest,
  ServerSvidRequest,
  WorkloadSvidRequest,
} from './api.ts';
import { Authorities } from './authorities.ts';
import { Crls } from './crls.ts';
import { checkMaySignDownstream, withDownstreams } from './downstream.ts';
import { Issuance, type IssueOutcome } from './issuance.ts';
import { DEFAULT_JWT_TTL, JwtIssuance, type JwtSvidRequest } from './jwt.ts';
import type { KeyManager } from './keys/key-manager.ts';
import type { Ledger, LedgerRow } from './ledger.ts';
import { type AuthorityKind, KINDS } from './lives.ts';
import {
  BACKDATE_SECONDS,
  DEFAULT_TTL_LIMITS,
  planDownstream,
  planNode,
  planServer,
  planWorkload,
  svidValidity,
  type TtlLimits,
  type Validity,
} from './profile.ts';
import type { RevocationRegistry, RevocationTarget, RevocationTimes } from './revocation.ts';
import type { Issuer } from './signer.ts';
import type { Slot, Slots } from './slots.ts';

const DAY_SECONDS = 86_400;
const DEFAULT_AUTHORITY_TTL_SECONDS = 365 * DAY_SECONDS;
const DEFAULT_JWT_KEY_TTL_SECONDS = 7 * DAY_SECONDS;
const DEFAULT_DOWNSTREAM_TTL: TtlLimits = { defaultTtlSeconds: DAY_SECONDS, maxTtlSeconds: DAY_SECONDS };
/** Revocations that come together are put on one CRL, after they have reached the agents: reading the ledger takes a while. */
const CRL_DELAY_MS = 100;
/** A long list goes to every agent whole: it is sent less often. */
const CRL_BYTES_PER_MS = 100;
const MAX_CRL_DELAY_MS = 30_000;
/** Clocks jump: what is due is looked for at least this often. */
const MAX_UPKEEP_MS = 60_000;
const MIN_UPKEEP_MS = 50;
const RETRY_MS = 30_000;

/** What `openCertificateAuthority` opened. */
export interface AuthorityParts {
  readonly database: DatabaseSync;
  readonly slots: Slots;
  readonly ledger: Ledger;
  readonly revocations: RevocationRegistry;
  readonly keys: KeyManager;
  readonly formerKeys: KeyManager | undefined;
  readonly replaceLostKeys: boolean;
  readonly close: () => void;
}

export class LocalAuthority implements CertificateAuthority {
  readonly trustDomain: TrustDomain;
  readonly #options: CertificateAuthorityOptions;
  readonly #parts: AuthorityParts;
  readonly #authorities: Authorities;
  readonly #crls: Crls;
  readonly #issuance: Issuance;
  readonly #jwtIssuance: JwtIssuance;
  readonly #listeners = new Set<(change: CaChange) => void>();
  /** What happened before anybody listened. */
  readonly #early: CaChange[];
  /** Revocations of signing keys that are on disk and not yet told. */
  readonly #made: Revocation[] = [];
  /** One act after the other: each begins with what the one before it left. */
  #queue: Promise<unknown> = Promise.resolve();
  #cancelUpkeep = () => {};
  #cancelCrls: (() => void) | undefined;
  #closed = false;

  static async open(options: CertificateAuthorityOptions, parts: AuthorityParts): Promise<LocalAuthority> {
    let self: LocalAuthority | undefined;
    const early: CaChange[] = [];
    const authorities = await Authorities.open({
      trustDomain: options.trustDomain,
      clock: options.clock,
      slots: parts.slots,
      ledger: parts.ledger,
      keys: parts.keys,
      formerKeys: parts.formerKeys,
      keyType: options.keyType ?? 'ec-p256',
      jwtKeyType: options.jwtKeyType ?? 'ec-p256',
      authorityTtlSeconds: options.authorityTtlSeconds ?? DEFAULT_AUTHORITY_TTL_SECONDS,
      jwtKeyTtlSeconds: options.jwtKeyTtlSeconds ?? DEFAULT_JWT_KEY_TTL_SECONDS,
      replaceLostKeys: parts.replaceLostKeys,
      upstream: options.upstream,
      acted: (act, authority) => {
        const change: CaChange = { bundle: true, acts: [{ act, authority }] };
        if (self === undefined) early.push(change);
        else self.#tell({ ...change, revocations: self.#made.splice(0) });
      },
    });
    checkPlaceAndTime(options, parts.slots);
    const failure = await authorities.upkeep().then(
      () => undefined,
      (thrown: unknown) => asError(thrown),
    );
    if (failure !== undefined) {
      // a server that has what it needs to issue does not wait for what is due next
      if (KINDS.some((kind) => !isUsable(parts.slots.active(kind), options.clock.nowMs()))) throw failure;
      options.onError?.(failure);
    }
    self = new LocalAuthority(options, parts, authorities, early);
    await authorities.resumeRevocations((slot, untilMs) => self!.#crls.signLast(slot, untilMs));
    self.#crls.refresh();
    self.#planUpkeep();
    return self;
  }

  private constructor(
    options: CertificateAuthorityOptions,
    parts: AuthorityParts,
    authorities: Authorities,
    early: CaChange[],
  ) {
    const { slots, revocations, ledger } = parts;
    const { clock } = options;
    this.trustDomain = options.trustDomain;
    this.#options = options;
    this.#parts = parts;
    this.#authorities = authorities;
    this.#early = early;
    this.#crls = new Crls({ slots, revocations, clock, keyOf: (slot) => authorities.keyOf(slot) });
    const nowMs = () => clock.nowMs();
    this.#issuance = new Issuance(() => authorities.issuing(), ledger, nowMs);
    const ttl = options.jwtTtl ?? DEFAULT_JWT_TTL;
    this.#jwtIssuance = new JwtIssuance({ issuing: () => authorities.jwtIssuing(), ledger, nowMs, ttl });
  }

  bundle() {
    return this.#authorities.bundle();
  }

  crls(): Buffer[] {
    return this.#crls.current();
  }

  authorities() {
    return this.#authorities.list();
  }

  prepare(kind: AuthorityKind) {
    return this.#act(() => this.#authorities.prepare(kind));
  }

  activate(kind: AuthorityKind, id?: string) {
    return this.#act(() => this.#authorities.activate(kind, id));
  }

  taint(kind: AuthorityKind, id: string) {
    return this.#act(() => this.#authorities.taint(kind, id));
  }

  revokeAuthority(kind: AuthorityKind, id: string, reason: string) {
    return this.#act(() => {
      const slot = this.#authorities.checkRevocable(kind, id);
      const also = () => {
        if (kind === 'x509') this.#made.push(this.#revoke({ authority: id }, reason));
      };
      return this.#authorities.revoke(slot, also, (revoked, untilMs) => this.#crls.signLast(revoked, untilMs));
    });
  }

  onChange(listener: (change: CaChange) => void): () => void {
    this.#listeners.add(listener);
    for (const change of this.#early.splice(0)) this.#tell(change);
    return () => this.#listeners.delete(listener);
  }

  upkeep(): Promise<void> {
    return this.#act(() => this.#authorities.upkeep());
  }

  async issueWorkloadSvid(request: WorkloadSvidRequest): Promise<IssueOutcome> {
    const { spiffeId, node } = request;
    const refusal = this.#refusalOf(request);
    if (refusal !== undefined) return err(refusal);
    return this.#issuance.issue(
      request.csr,
      (issuer) =>
        planWorkload(
          spiffeId,
          node,
          request.dnsNames ?? [],
          this.#validity(request, this.#options.workloadTtl, issuer),
        ),
      request.requester,
    );
  }

  async issueNodeSvid(request: NodeSvidRequest): Promise<IssueOutcome> {
    const { name, incarnation } = request;
    return this.#issuance.issue(
      request.csr,
      (issuer) => planNode(this.trustDomain, name, incarnation, this.#validity(request, this.#options.nodeTtl, issuer)),
      request.requester,
    );
  }

  async issueServerSvid(request: ServerSvidRequest): Promise<IssueOutcome> {
    return this.#issuance.issue(
      request.csr,
      (issuer) =>
        planServer(this.trustDomain, request.dnsNames ?? [], this.#validity(request, this.#options.serverTtl, issuer)),
      request.requester,
    );
  }

  async signDownstream(request: DownstreamRequest): Promise<IssueOutcome> {
    const limits = this.#options.downstreamTtl ?? DEFAULT_DOWNSTREAM_TTL;
    checkMaySignDownstream(this.#authorities.issuing());
    return this.#issuance.issue(
      request.csr,
      (issuer) => planDownstream(this.trustDomain, this.#validity(request, limits, issuer)),
      request.requester,
      request.node,
    );
  }

  async issueJwtSvid(request: JwtSvidRequest) {
    const { spiffeId, node } = request;
    const refusal = this.#refusalOf(request);
    if (refusal !== undefined) return err(refusal);
    // as an X.509-SVID that is issued now; a token cannot be taken back later
    const notBeforeMs = (Math.floor(this.#options.clock.nowMs() / 1000) - BACKDATE_SECONDS) * 1000;
    if (this.isRevoked({ spiffeId, node, serial: '', notBeforeMs })) return err('ISSUE_REVOKED' as const);
    return ok(await this.#jwtIssuance.issue(request));
  }

  revoke(what: Exclude<RevocationTarget, { readonly authority: string }>, reason: string): Revocation {
    const { ledger, revocations } = this.#parts;
    const all = withDownstreams(what, ledger.liveDownstreams(this.#options.clock.nowMs()), this.trustDomain);
    const made = revocations.revokeAll(all, reason, this.#revocationTimes());
    const revocation = made.pop()!;
    if (made.length > 0) this.#tell({ revocations: made });
    const bytes = this.#crls.current().reduce((sum, crl) => sum + crl.length, 0);
    this.#cancelCrls?.();
    this.#cancelCrls = undefined;
    this.#refreshCrlsIn(Math.min(CRL_DELAY_MS + bytes / CRL_BYTES_PER_MS, MAX_CRL_DELAY_MS));
    return revocation;
  }

  revocations(): readonly Revocation[] {
    return this.#parts.revocations.list();
  }

  isRevoked(subject: RevocationSubject): boolean {
    return this.#parts.revocations.isRevoked(subject);
  }

  listSvids(): LedgerRow[] {
    return this.#parts.ledger.listLive(this.#options.clock.nowMs());
  }

  svidBySerial(serial: string): LedgerRow | undefined {
    return this.#parts.ledger.bySerial(serial);
  }

  close(): void {
    this.#issuance.close();
    this.#jwtIssuance.close();
    this.#closed = true;
    this.#cancelUpkeep();
    this.#cancelCrls?.();
    this.#parts.close();
  }

  #refusalOf({ spiffeId, node }: Pick<WorkloadSvidRequest, 'spiffeId' | 'node'>) {
    if (trustDomainOf(spiffeId) !== this.trustDomain || trustDomainOf(node) !== this.trustDomain) {
      return 'CERT_TRUST_DOMAIN' as const;
    }
    return pathOf(spiffeId) === '' ? ('CERT_NO_PATH' as const) : undefined;
  }

  #revoke(what: RevocationTarget, reason: string): Revocation {
    return this.#parts.revocations.revoke(what, reason, this.#revocationTimes());
  }

  #revocationTimes(): RevocationTimes {
    const nowMs = this.#options.clock.nowMs();
    // what an authority signs is backdated to its own beginning and no further: that must be covered, too
    const begun = this.#parts.slots.list().filter((slot) => slot.kind === 'x509' && slot.notBeforeMs <= nowMs);
    const asIfIssued = begun.map(({ notBeforeMs }) => notBeforeMs + BACKDATE_SECONDS * 1000);
    const latestIssueMs = Math.max(this.#parts.ledger.latestMs, ...asIfIssued);
    return { nowMs, latestIssueMs };
  }

  #validity(request: { readonly ttlSeconds?: number }, limits: TtlLimits | undefined, issuer: Issuer): Validity {
    const nowMs = this.#options.clock.nowMs();
    const validity = svidValidity(nowMs, request.ttlSeconds, limits ?? DEFAULT_TTL_LIMITS, issuer.notAfterMs);
    // below an authority that is younger than what is backdated; with a clock before its time, lint refuses
    const notBeforeMs =
      nowMs < issuer.notBeforeMs ? validity.notBeforeMs : Math.max(validity.notBeforeMs, issuer.notBeforeMs);
    return { ...validity, notBeforeMs };
  }

  async #act<T>(work: () => Promise<T> | T): Promise<T> {
    const done = this.#queue.then(() => {
      if (this.#closed) throw new CountersignError('unavailable', 'the certificate authority is closed');
      return work();
    });
    this.#queue = done.catch(() => {});
    try {
      return await done;
    } finally {
      if (!this.#closed) {
        this.#refreshCrls();
        this.#planUpkeep();
      }
    }
  }

  #tell(change: CaChange): void {
    for (const listener of [...this.#listeners]) listener(change);
  }

  #planUpkeep(): void {
    const dueMs = Math.min(this.#authorities.nextDueMs(), this.#crls.nextDueMs()) - this.#options.clock.nowMs();
    this.#setUpkeep(Math.max(MIN_UPKEEP_MS, Math.min(dueMs, MAX_UPKEEP_MS)));
  }

  #setUpkeep(waitMs: number): void {
    this.#cancelUpkeep();
    if (this.#closed) return;
    this.#cancelUpkeep = systemTimers.set(waitMs, () => {
      this.upkeep().catch((thrown: unknown) => {
        if (this.#closed) return;
        this.#options.onError?.(asError(thrown));
        this.#setUpkeep(RETRY_MS);
      });
    });
  }

  #refreshCrlsIn(waitMs: number): void {
    this.#cancelCrls ??= systemTimers.set(waitMs, () => this.#refreshCrls());
  }

  #refreshCrls(): void {
    this.#cancelCrls?.();
    this.#cancelCrls = undefined;
    try {
      const { changed, againMs } = this.#crls.refresh();
      if (changed) this.#tell({ crls: true });
      if (againMs !== undefined) this.#refreshCrlsIn(againMs);
    } catch (thrown) {
      this.#options.onError?.(asError(thrown));
      this.#refreshCrlsIn(RETRY_MS);
    }
  }
}

function isUsable(slot: Slot | undefined, nowMs: number): boolean {
  return slot !== undefined && nowMs < slot.notAfterMs;
}

/** @throws CountersignError for authorities of another trust domain, or before the clock's time. */
function checkPlaceAndTime({ directory, trustDomain, clock }: CertificateAuthorityOptions, slots: Slots): void {
  for (const { kind, state, id, chain, roots, notBeforeMs } of slots.list()) {
    if (kind !== 'x509' || state !== 'active') continue;
    const certificate = parseCertificate((chain[0] ?? roots[0])!);
    const spiffeId = certificate.ok ? certificate.value.spiffeId : undefined;
    if (spiffeId === undefined || trustDomainOf(spiffeId) !== trustDomain) {
      const other = spiffeId === undefined ? 'none' : trustDomainOf(spiffeId);
      throw new CountersignError(
        'bad-input',
        `${directory}: the authority ${id} is of the trust domain ${other}, not ${trustDomain}; correct trustDomain in the configuration`,
      );
    }
    if (clock.nowMs() < notBeforeMs) {
      throw new CountersignError('bad-input', `${directory}: the authority ${id} is not valid yet; check the clock`);
    }
  }
}
