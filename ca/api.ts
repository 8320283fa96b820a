/**
 * The certificate authority as identity/ sees it. Issuing, in order: the request's signature is verified, a profile plans the
 * certificate, lint reads it, sign signs it, the ledger's row is on disk, the certificate leaves.
 */
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError, err, type Result } from '../src/base/errors.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import type { JwtAuthority, Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import type { Certificate } from '../src/pki/certificate.ts';
import { generateKey } from '../src/pki/keys.ts';
import { makeAuthority } from './authority.ts';
import { Issuance, type IssueOutcome } from './issuance.ts';
import { SoftwareKey } from './keys/software-key.ts';
import { type Authority, loadAuthority, openStateDirectory, storeAuthority } from './keys.ts';
import { Ledger, type LedgerRow } from './ledger.ts';
import {
  BACKDATE_SECONDS,
  DEFAULT_TTL_LIMITS,
  planNode,
  planServer,
  planWorkload,
  svidValidity,
  type TtlLimits,
  type Validity,
} from './profile.ts';
import { RevocationRegistry, type RevocationTarget } from './revocation.ts';
import { signerOf } from './signer.ts';
import { openStore } from './store.ts';

export type { IssuedSvid, IssueOutcome } from './issuance.ts';
export type { LedgerRow } from './ledger.ts';
export type { TtlLimits } from './profile.ts';
export type { RevocationTarget } from './revocation.ts';

const DAY_MS = 86_400_000;
const DEFAULT_AUTHORITY_TTL_DAYS = 3650;

export interface CertificateAuthorityOptions {
  /** Made, 0700, if it is not there. */
  readonly directory: string;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  /** Of a root that is made now. 10 years if not given. */
  readonly authorityTtlDays?: number;
  readonly workloadTtl?: TtlLimits;
  readonly nodeTtl?: TtlLimits;
  readonly serverTtl?: TtlLimits;
}

interface SvidRequest {
  /** PKCS#10, DER. Only its key is taken. */
  readonly csr: Buffer;
  /** Cut to the profile's limit and to the authority's end; the profile's default if not given. */
  readonly ttlSeconds?: number;
  /** Who asked, for the ledger. */
  readonly requester: string;
}

export interface WorkloadSvidRequest extends SvidRequest {
  readonly spiffeId: SpiffeId;
  /** SPIFFE ID of the node that the SVID is bound to. */
  readonly node: SpiffeId;
  readonly dnsNames?: readonly string[];
}

export interface NodeSvidRequest extends SvidRequest {
  readonly name: NodeName;
  readonly incarnation: bigint;
}

export interface ServerSvidRequest extends SvidRequest {
  readonly dnsNames?: readonly string[];
}

export interface JwtSvidRequest {
  readonly spiffeId: SpiffeId;
  /** At least one, none of them empty. */
  readonly audience: readonly string[];
  /** The default (5 minutes) if not given; cut to the limit and to the key's end. */
  readonly ttlSeconds?: number;
  /** SPIFFE ID of the node whose workload it is for. */
  readonly node: SpiffeId;
  /** Who asked, for the ledger. */
  readonly requester: string;
}

export interface IssuedJwtSvid {
  /** JWS, compact. */
  readonly token: string;
  /** Unix ms, whole seconds. */
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
  /** The kid in its header. */
  readonly keyId: string;
}

/** What vouches for the trust domain now. It holds an authority before it signs anything, and until nothing that it signed lives. */
export interface CaBundle {
  /** DER. */
  readonly authorities: Buffer[];
  readonly jwtAuthorities: JwtAuthority[];
  /** Grows with every change, and never goes back. */
  readonly sequence: bigint;
  readonly refreshHintSeconds: number;
  /** Subject key identifiers: what these signed is to be renewed now. */
  readonly taintedKeyIds: Buffer[];
}

export type AuthorityKind = 'x509' | 'jwt';

/** A signing key and where it is in its life. Times are Unix ms. */
export interface AuthorityInfo {
  readonly kind: AuthorityKind;
  /** x509: subject key identifier, lower-case hex; jwt: the kid. */
  readonly id: string;
  /** prepared: in the bundle, signs nothing yet. active: signs. old: in the bundle until nothing that it signed lives. */
  readonly state: 'prepared' | 'active' | 'old';
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** What it signed is to be renewed. */
  readonly tainted: boolean;
  readonly keyType: string;
  /** It was signed by an upstream authority: the bundle holds that one's root. */
  readonly upstream: boolean;
}

/** What is different now; the bundle, the CRLs and the revocations are asked for anew. */
export interface CaChange {
  readonly bundle?: true;
  readonly crls?: true;
  /** Made by the authority itself; those of `revoke` are told by who asked for them. */
  readonly revocations?: readonly Revocation[];
}

export interface CertificateAuthority {
  readonly trustDomain: TrustDomain;
  bundle(): CaBundle;
  /** DER, one for each X.509 signing key in the bundle (RFC 5280, section 5). */
  crls(): Buffer[];
  authorities(): AuthorityInfo[];
  /** Makes the next authority and publishes it; the one that is prepared already if there is one. */
  prepare(kind: AuthorityKind): Promise<AuthorityInfo>;
  /** From now on the prepared one signs. @throws CountersignError not-found if there is none, or none with this id */
  activate(kind: AuthorityKind, id?: string): Promise<AuthorityInfo>;
  /** What it signed is to be renewed now; it stays in the bundle. @throws CountersignError bad-input for the active one */
  taint(kind: AuthorityKind, id: string): Promise<AuthorityInfo>;
  /** It leaves the bundle, its key is deleted, and what it signed is revoked. @throws CountersignError bad-input for the active one */
  revokeAuthority(kind: AuthorityKind, id: string, reason: string): Promise<AuthorityInfo>;
  /** Called after each change, when it is on disk. */
  onChange(listener: (change: CaChange) => void): () => void;
  /** ISSUE_REVOKED, CERT_TRUST_DOMAIN, CERT_NO_PATH. */
  issueJwtSvid(request: JwtSvidRequest): Promise<Result<IssuedJwtSvid, ReasonCode>>;
  issueWorkloadSvid(request: WorkloadSvidRequest): Promise<IssueOutcome>;
  issueNodeSvid(request: NodeSvidRequest): Promise<IssueOutcome>;
  issueServerSvid(request: ServerSvidRequest): Promise<IssueOutcome>;
  /** Durable when it returns. */
  revoke(what: RevocationTarget, reason: string): Revocation;
  revocations(): readonly Revocation[];
  isRevoked(subject: RevocationSubject): boolean;
  /** Certificates that are valid now, newest first, 10,000 at most. */
  listSvids(): LedgerRow[];
  svidBySerial(serial: string): LedgerRow | undefined;
  /** Finishes what was asked for. A second time does nothing. */
  close(): void;
}

/** Opens the authority in a directory, or makes one there. @throws CountersignError naming the file and what to do. */
export async function openCertificateAuthority(options: CertificateAuthorityOptions): Promise<CertificateAuthority> {
  const { directory, trustDomain, clock } = options;
  await openStateDirectory(directory);
  const store = openStore(join(directory, 'ledger.db'));
  try {
    const ledger = new Ledger(store, clock.nowMs());
    const authority = (await loadAuthority(directory)) ?? (await createAuthority(options, ledger));
    checkAuthority(authority.certificate, trustDomain, directory, clock.nowMs());
    return new LocalAuthority(options, authority, ledger, new RevocationRegistry(store), () => {
      if (store.isOpen) store.close();
    });
  } catch (thrown) {
    store.close();
    throw thrown;
  }
}

async function createAuthority(options: CertificateAuthorityOptions, ledger: Ledger): Promise<Authority> {
  const { directory, trustDomain, clock } = options;
  if (!ledger.isEmpty()) {
    throw new CountersignError(
      'bad-input',
      `${directory}: the ledger lists certificates, but the authority that signed them is gone; restore ${directory}/authority from a backup, or begin anew in an empty directory`,
    );
  }
  const second = Math.floor(clock.nowMs() / 1000) * 1000;
  const validity: Validity = {
    notBeforeMs: second - BACKDATE_SECONDS * 1000,
    notAfterMs: second + (options.authorityTtlDays ?? DEFAULT_AUTHORITY_TTL_DAYS) * DAY_MS,
  };
  const key = generateKey();
  const made = await makeAuthority(new SoftwareKey('authority', key), trustDomain, validity);
  await storeAuthority(directory, key, made.certificate.der);
  // read back: what is used is what a restart will find
  const stored = await loadAuthority(directory);
  if (stored === undefined)
    throw new CountersignError('internal', `${directory}: the authority vanished while it was written`);
  return stored;
}

function checkAuthority(certificate: Certificate, trustDomain: TrustDomain, directory: string, nowMs: number): void {
  const problem = (what: string) => new CountersignError('bad-input', `${directory}/authority/ca.crt: ${what}`);
  const { spiffeId } = certificate;
  if (!certificate.isCa || spiffeId === undefined || pathOf(spiffeId) !== '') {
    throw problem('not the certificate of an authority; restore it from a backup');
  }
  if (trustDomainOf(spiffeId) !== trustDomain) {
    throw problem(
      `it is of the trust domain ${trustDomainOf(spiffeId)}, not ${trustDomain}; correct trustDomain in the configuration`,
    );
  }
  if (nowMs < certificate.notBeforeMs) throw problem('it is not valid yet; check the clock');
  if (nowMs > certificate.notAfterMs) throw problem('it has expired; begin anew in an empty directory');
}

class LocalAuthority implements CertificateAuthority {
  readonly trustDomain: TrustDomain;
  readonly #options: CertificateAuthorityOptions;
  readonly #certificate: Certificate;
  readonly #issuance: Issuance;
  readonly #ledger: Ledger;
  readonly #revocations: RevocationRegistry;
  readonly #closeStore: () => void;

  constructor(
    options: CertificateAuthorityOptions,
    authority: Authority,
    ledger: Ledger,
    revocations: RevocationRegistry,
    closeStore: () => void,
  ) {
    const { certificate } = authority;
    this.trustDomain = options.trustDomain;
    this.#options = options;
    this.#certificate = certificate;
    const signer = signerOf(new SoftwareKey('authority', authority.key), certificate);
    this.#issuance = new Issuance(signer, ledger, () => options.clock.nowMs());
    this.#ledger = ledger;
    this.#revocations = revocations;
    this.#closeStore = closeStore;
  }

  bundle(): CaBundle {
    return {
      authorities: [this.#certificate.der],
      jwtAuthorities: [],
      sequence: 1n,
      refreshHintSeconds: 300,
      taintedKeyIds: [],
    };
  }

  crls(): Buffer[] {
    return [];
  }

  authorities(): AuthorityInfo[] {
    const { subjectKeyId, notBeforeMs, notAfterMs } = this.#certificate;
    const id = subjectKeyId!.toString('hex');
    const state = 'active';
    return [{ kind: 'x509', id, state, notBeforeMs, notAfterMs, tainted: false, keyType: 'ec-p256', upstream: false }];
  }

  prepare(): Promise<AuthorityInfo> {
    return notYet();
  }

  activate(): Promise<AuthorityInfo> {
    return notYet();
  }

  taint(): Promise<AuthorityInfo> {
    return notYet();
  }

  revokeAuthority(): Promise<AuthorityInfo> {
    return notYet();
  }

  onChange(): () => void {
    return () => {};
  }

  issueJwtSvid(): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    return notYet();
  }

  async issueWorkloadSvid(request: WorkloadSvidRequest): Promise<IssueOutcome> {
    const { spiffeId, node } = request;
    if (trustDomainOf(spiffeId) !== this.trustDomain || trustDomainOf(node) !== this.trustDomain) {
      return err('CERT_TRUST_DOMAIN');
    }
    if (pathOf(spiffeId) === '') return err('CERT_NO_PATH');
    const validity = this.#validity(request, this.#options.workloadTtl);
    return this.#issuance.issue(
      request.csr,
      planWorkload(spiffeId, node, request.dnsNames ?? [], validity),
      request.requester,
    );
  }

  async issueNodeSvid(request: NodeSvidRequest): Promise<IssueOutcome> {
    const validity = this.#validity(request, this.#options.nodeTtl);
    return this.#issuance.issue(
      request.csr,
      planNode(this.trustDomain, request.name, request.incarnation, validity),
      request.requester,
    );
  }

  async issueServerSvid(request: ServerSvidRequest): Promise<IssueOutcome> {
    const validity = this.#validity(request, this.#options.serverTtl);
    return this.#issuance.issue(
      request.csr,
      planServer(this.trustDomain, request.dnsNames ?? [], validity),
      request.requester,
    );
  }

  revoke(what: RevocationTarget, reason: string): Revocation {
    return this.#revocations.revoke(what, reason, this.#options.clock.nowMs());
  }

  revocations(): readonly Revocation[] {
    return this.#revocations.list();
  }

  isRevoked(subject: RevocationSubject): boolean {
    return this.#revocations.isRevoked(subject);
  }

  listSvids(): LedgerRow[] {
    return this.#ledger.listLive(this.#options.clock.nowMs());
  }

  svidBySerial(serial: string): LedgerRow | undefined {
    return this.#ledger.bySerial(serial);
  }

  close(): void {
    this.#issuance.close();
    this.#closeStore();
  }

  #validity(request: SvidRequest, limits: TtlLimits | undefined): Validity {
    const nowMs = this.#options.clock.nowMs();
    return svidValidity(nowMs, request.ttlSeconds, limits ?? DEFAULT_TTL_LIMITS, this.#certificate.notAfterMs);
  }
}

function notYet(): Promise<never> {
  return Promise.reject(new CountersignError('unsupported', 'this authority has one key'));
}
