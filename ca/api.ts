/**
 * The certificate authority as identity/ sees it. Issuing, in order: the request's signature is verified, a profile plans the
 * certificate, lint reads it, sign signs it, the ledger's row is on disk, the certificate leaves.
 */
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError, err } from '../src/base/errors.ts';
import type { Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import type { Certificate } from '../src/pki/certificate.ts';
import { generateKey, publicKeyDer } from '../src/pki/keys.ts';
import { buildTbs } from './build.ts';
import { Issuance, type IssueOutcome, lintFailure } from './issuance.ts';
import { type Authority, loadAuthority, openStateDirectory, storeAuthority } from './keys.ts';
import { Ledger, type LedgerRow } from './ledger.ts';
import { lintTbs } from './lint.ts';
import {
  BACKDATE_SECONDS,
  DEFAULT_TTL_LIMITS,
  planAuthority,
  planNode,
  planServer,
  planWorkload,
  svidValidity,
  type TtlLimits,
  type Validity,
} from './profile.ts';
import { RevocationRegistry, type RevocationTarget } from './revocation.ts';
import { randomSerial } from './serial.ts';
import { signCertificate } from './sign.ts';
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

export interface CertificateAuthority {
  readonly trustDomain: TrustDomain;
  bundle(): { authorities: Buffer[]; sequence: bigint };
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
  const spki = publicKeyDer(key);
  const plan = planAuthority(trustDomain, validity);
  const linted = lintTbs(buildTbs(plan, undefined, spki, randomSerial()), plan, undefined, spki);
  if (!linted.ok) throw lintFailure(plan, linted.error);
  await storeAuthority(directory, key, signCertificate(key, linted.value));
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
    if (certificate.subjectKeyId === undefined)
      throw new CountersignError('bad-input', 'the authority has no key identifier');
    this.trustDomain = options.trustDomain;
    this.#options = options;
    this.#certificate = certificate;
    const { subjectDer, subjectKeyId, notBeforeMs, notAfterMs } = certificate;
    const issuer = { subjectDer, subjectKeyId, notBeforeMs, notAfterMs };
    this.#issuance = new Issuance(authority, issuer, ledger, () => options.clock.nowMs());
    this.#ledger = ledger;
    this.#revocations = revocations;
    this.#closeStore = closeStore;
  }

  bundle(): { authorities: Buffer[]; sequence: bigint } {
    return { authorities: [this.#certificate.der], sequence: 1n };
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
