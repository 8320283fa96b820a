/**
 * The certificate authority as identity/ sees it. Issuing, in order: the request's signature is verified, a profile plans the
 * certificate, lint reads it, sign signs it, the ledger's row is on disk, the certificate leaves.
 */
import { chmodSync, existsSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError, type Result } from '../src/base/errors.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import type { Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import type { AuthorityAct } from './authorities.ts';
import type { IssueOutcome } from './issuance.ts';
import type { IssuedJwtSvid, JwtSvidRequest } from './jwt.ts';
import type { KeyBlobs } from './keys/blobs.ts';
import type { KeyType } from './keys/key-type.ts';
import { type KeysConfig, openFormerKeys, openKeys } from './keys/open.ts';
import { Ledger, type LedgerRow } from './ledger.ts';
import type { AuthorityInfo, AuthorityKind, CaBundle } from './lives.ts';
import { LocalAuthority } from './local-authority.ts';
import type { TtlLimits } from './profile.ts';
import { RevocationRegistry, type RevocationTarget } from './revocation.ts';
import { isPublished, Slots } from './slots.ts';
import { openStore } from './store.ts';
import { takeOverAuthority } from './takeover.ts';
import type { UpstreamAuthority } from './upstream/upstream.ts';

export type { AuthorityAct } from './authorities.ts';
export type { IssuedSvid, IssueOutcome } from './issuance.ts';
export type { IssuedJwtSvid, JwtSvidRequest } from './jwt.ts';
export type { KeyBlobs } from './keys/blobs.ts';
export type { LedgerRow } from './ledger.ts';
export type { AuthorityInfo, AuthorityKind, CaBundle } from './lives.ts';
export type { TtlLimits } from './profile.ts';
export { checkReason, type RevocationTarget } from './revocation.ts';

export interface CertificateAuthorityOptions {
  /** Made, 0700, if it is not there. */
  readonly directory: string;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  /** Where private keys live: files in `<directory>/keys` if not given. */
  readonly keys?: KeysConfig;
  /** Instead of that directory, where servers share a store. */
  readonly keyBlobs?: KeyBlobs;
  /** Of keys that are made from now on. P-256 if not given. */
  readonly keyType?: KeyType;
  readonly jwtKeyType?: KeyType;
  /** Life of an authority that is made from now on. 365 days if not given. */
  readonly authorityTtlSeconds?: number;
  /** Life of a key for JWT-SVIDs. 7 days if not given. */
  readonly jwtKeyTtlSeconds?: number;
  /** When the key of the active authority is gone: begin with a new one instead of refusing. Keys in memory are gone with each restart. */
  readonly replaceLostKeys?: boolean | undefined;
  /** Who signs the authority's certificate; itself if not given. */
  readonly upstream?: UpstreamAuthority | undefined;
  readonly workloadTtl?: TtlLimits;
  readonly nodeTtl?: TtlLimits;
  readonly serverTtl?: TtlLimits;
  readonly jwtTtl?: TtlLimits;
  /** Of authorities of servers below. A day at most if not given. */
  readonly downstreamTtl?: TtlLimits;
  /** Called once with the database, before anything is read from it or written to it but its schema. */
  readonly onDatabase?: (database: DatabaseSync) => void;
  /** What the authority tried by itself and could not do; it tries again. */
  readonly onError?: (error: Error) => void;
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

export interface DownstreamRequest extends SvidRequest {
  /** SPIFFE ID of the node whose workload asks. */
  readonly node: SpiffeId;
}

/** What is different now; the bundle and the CRLs are asked for anew. */
export interface CaChange {
  readonly bundle?: true;
  readonly crls?: true;
  /** Of signing keys, and of authorities of servers below; what `revoke` was asked for is told by who asked. */
  readonly revocations?: readonly Revocation[];
  /** What happened to signing keys, by the clock or by who asked. */
  readonly acts?: readonly { readonly act: AuthorityAct; readonly authority: AuthorityInfo }[];
}

export interface CertificateAuthority {
  readonly trustDomain: TrustDomain;
  bundle(): CaBundle;
  /** DER, one for each X.509 signing key (RFC 5280, section 5). What is revoked is on them a moment later, or after `upkeep`. */
  crls(): Buffer[];
  authorities(): AuthorityInfo[];
  /** Makes the next authority and publishes it; the one that is prepared already if there is one. */
  prepare(kind: AuthorityKind): Promise<AuthorityInfo>;
  /** From now on the prepared one signs. @throws CountersignError not-found if there is none, or none with this id */
  activate(kind: AuthorityKind, id?: string): Promise<AuthorityInfo>;
  /** What it signed is to be renewed now; it stays in the bundle. @throws CountersignError bad-input if it is not an old one */
  taint(kind: AuthorityKind, id: string): Promise<AuthorityInfo>;
  /** It leaves the bundle, its key is deleted, and what it signed is revoked. @throws CountersignError bad-input for the active one */
  revokeAuthority(kind: AuthorityKind, id: string, reason: string): Promise<AuthorityInfo>;
  /** Called after each change, when it is on disk. The first listener is told what happened while the authority was opened. */
  onChange(listener: (change: CaChange) => void): () => void;
  /** Does what is due by the clock: prepares, activates, removes, signs CRLs. Called by itself when something is. */
  upkeep(): Promise<void>;
  issueWorkloadSvid(request: WorkloadSvidRequest): Promise<IssueOutcome>;
  issueNodeSvid(request: NodeSvidRequest): Promise<IssueOutcome>;
  issueServerSvid(request: ServerSvidRequest): Promise<IssueOutcome>;
  /**
   * An authority for a server below, of path length 0. Whatever the request says but its key is ignored.
   * @throws CountersignError unsupported if the active authority may sign SVIDs only.
   */
  signDownstream(request: DownstreamRequest): Promise<IssueOutcome>;
  /** ISSUE_REVOKED, CERT_TRUST_DOMAIN or CERT_NO_PATH. @throws CountersignError bad-input for an audience that is none */
  issueJwtSvid(request: JwtSvidRequest): Promise<Result<IssuedJwtSvid, ReasonCode>>;
  /** Durable when it returns. What was signed for servers below falls with it. A signing key is revoked by revokeAuthority. */
  revoke(what: Exclude<RevocationTarget, { readonly authority: string }>, reason: string): Revocation;
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
  const { directory, trustDomain, clock, keyBlobs: blobs } = options;
  openStateDirectory(directory);
  const store = openStore(join(directory, 'ledger.db'));
  const closers = [() => store.isOpen && store.close()];
  const close = () => {
    for (const closer of closers.splice(0).reverse()) closer();
  };
  try {
    options.onDatabase?.(store);
    const slots = new Slots(store);
    // before anything else: by a wrong clock, nothing is to be pruned, replaced or deleted
    if (!(options.replaceLostKeys ?? options.keys?.type === 'memory')) refuseEnded(slots, clock.nowMs(), directory);
    const ledger = new Ledger(store, clock.nowMs());
    const config = options.keys ?? { type: 'disk' };
    const keysDirectory = join(directory, 'keys');
    const keys = openKeys(config, { trustDomain, directory: keysDirectory, blobs });
    closers.push(() => keys.close());
    // keys that were made before they were kept elsewhere serve until they are rotated
    const onDisk = existsSync(keysDirectory) || existsSync(join(directory, 'authority'));
    const formerKeys = config.type !== 'disk' && onDisk ? openFormerKeys(config, keysDirectory) : undefined;
    if (formerKeys !== undefined) closers.push(() => formerKeys.close());
    await takeOverAuthority(directory, trustDomain, slots, formerKeys ?? keys, clock.nowMs());
    if (!slots.list().some(({ kind }) => kind === 'x509') && !ledger.isEmpty()) {
      throw new CountersignError(
        'bad-input',
        `${directory}: the ledger lists certificates, but the authority that signed them is gone; restore ${directory} from a backup, or begin anew in an empty directory`,
      );
    }
    const revocations = new RevocationRegistry(store, trustDomain);
    const replaceLostKeys = options.replaceLostKeys ?? config.type === 'memory';
    const parts = { database: store, slots, ledger, revocations, keys, formerKeys, replaceLostKeys, close };
    return await LocalAuthority.open(options, parts);
  } catch (thrown) {
    close();
    throw thrown;
  }
}

/** Makes it if it is not there. @throws CountersignError if others may write to it. */
function openStateDirectory(directory: string): void {
  if (!existsSync(directory)) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    chmodSync(directory, 0o700);
  }
  if ((statSync(directory).mode & 0o022) !== 0) {
    throw new CountersignError('permission-denied', `${directory}: others may write to it; run chmod 700 ${directory}`);
  }
}

/** @throws CountersignError if there are authorities, and all of them have ended. */
function refuseEnded(slots: Slots, nowMs: number, directory: string): void {
  const x509 = slots.list().filter((slot) => slot.kind === 'x509' && isPublished(slot));
  if (x509.length === 0 || x509.some(({ notAfterMs }) => nowMs <= notAfterMs)) return;
  throw new CountersignError(
    'bad-input',
    `${directory}: every signing key has ended; check the clock; if it is right, set ca.replaceLostKeys: true and give every agent the new bundle.pem`,
  );
}
