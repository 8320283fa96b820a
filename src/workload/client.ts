/** A small Workload API client: what `countersign svid fetch` and the tests speak with. Any SPIFFE client does as well. */
import type { KeyObject } from 'node:crypto';
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import {
  type JWTSVIDResponse,
  SpiffeWorkloadAPIClient,
  type X509SVIDResponse,
} from '../../proto/gen/spiffe/workload/workload.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { errorCodeOfGrpcStatus } from '../base/exit-codes.ts';
import type { SpiffeId, TrustDomain } from '../model/ids.ts';
import { parseSpiffeId, spiffeId } from '../model/spiffe-id.ts';
import { type DerReader, readDer, TAG } from '../pki/der.ts';
import { privateKeyFromDer } from '../pki/keys.ts';

export interface FetchedSvid {
  readonly spiffeId: SpiffeId;
  /** DER, leaf first. */
  readonly chain: readonly Buffer[];
  readonly privateKey: KeyObject;
  /** DER, the authorities of the SVID's own trust domain. */
  readonly bundle: readonly Buffer[];
  readonly hint: string;
  /** DER, by trust domain: whom else the workload may trust, each for its own trust domain alone. */
  readonly federatedBundles: ReadonlyMap<TrustDomain, readonly Buffer[]>;
  /** Revocation lists, DER. */
  readonly crls: readonly Buffer[];
}

export interface FetchedJwtSvid {
  readonly spiffeId: SpiffeId;
  /** A bearer secret. */
  readonly token: string;
  /** Unix ms, as the token says; this client does not verify what its own agent made. */
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
}

export interface SvidWatch {
  close(): void;
}

const MAX_CERTIFICATES_BYTES = 1024 * 1024;

/**
 * The caller's default X.509-SVID.
 * @throws CountersignError permission-denied if no entry matches this process, unavailable if nobody serves there or no SVID is issued yet.
 */
export async function fetchX509Svid(socketPath: string, options: { timeoutMs?: number } = {}): Promise<FetchedSvid> {
  return (await fetchX509Svids(socketPath, options))[0]!;
}

/** All of the caller's X.509-SVIDs, the default first; at least one. @throws as fetchX509Svid */
export function fetchX509Svids(
  socketPath: string,
  { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
): Promise<FetchedSvid[]> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      watch.close();
      reject(new CountersignError('unavailable', `${socketPath}: no answer within ${timeoutMs} ms`));
    }, timeoutMs);
    const settle = (act: () => void) => {
      clearTimeout(timer);
      watch.close();
      act();
    };
    const watch = watchX509Svids(
      socketPath,
      (svids) => settle(() => resolve(svids)),
      (problem) => settle(() => reject(problem)),
    );
  });
}

/** Calls onUpdate with the whole state, now and after every change; onEnd once, unless close() came first. */
export function watchX509Svids(
  socketPath: string,
  onUpdate: (svids: FetchedSvid[]) => void,
  onEnd: (problem: CountersignError) => void,
): SvidWatch {
  const { client, metadata } = connection(socketPath);
  const call = client.fetchX509Svid({}, metadata);
  let over = false;
  const end = (problem?: CountersignError) => {
    if (over) return;
    over = true;
    call.cancel();
    client.close();
    if (problem !== undefined) onEnd(problem);
  };
  call.on('data', (response: X509SVIDResponse) => {
    if (over) return;
    try {
      onUpdate(readResponse(response));
    } catch (thrown) {
      end(malformed(socketPath, thrown));
    }
  });
  call.on('error', (thrown: Error) => end(problemOf(socketPath, thrown)));
  call.on('end', () => end(new CountersignError('unavailable', `${socketPath}: the stream ended`)));
  return { close: () => end() };
}

/**
 * A JWT-SVID for these audiences; of one identity, or the caller's default.
 * @throws as fetchX509Svid, and bad-input for an audience that the agent refuses
 */
export function fetchJwtSvid(
  socketPath: string,
  audience: readonly string[],
  { spiffeId, timeoutMs = 10_000 }: { spiffeId?: SpiffeId; timeoutMs?: number } = {},
): Promise<FetchedJwtSvid> {
  const { client, metadata } = connection(socketPath);
  const deadline = Date.now() + timeoutMs;
  return new Promise((resolve, reject) => {
    const request = { audience: [...audience], spiffeId: spiffeId ?? '' };
    client.fetchJwtsvid(request, metadata, { deadline }, (thrown: ServiceError | null, response: JWTSVIDResponse) => {
      client.close();
      if (thrown !== null) return reject(problemOf(socketPath, thrown));
      try {
        resolve(readJwtSvid(response));
      } catch (cause) {
        reject(malformed(socketPath, cause));
      }
    });
  });
}

function connection(socketPath: string): { client: SpiffeWorkloadAPIClient; metadata: Metadata } {
  const client = new SpiffeWorkloadAPIClient(`unix:${socketPath}`, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_channelz': 0,
  });
  const metadata = new Metadata();
  metadata.set('workload.spiffe.io', 'true');
  return { client, metadata };
}

function problemOf(socketPath: string, thrown: Error): CountersignError {
  const { code, details } = thrown as ServiceError;
  const absent = code === status.UNAVAILABLE && /connect|ENOENT|ECONNREFUSED/.test(details);
  const said = absent ? 'nobody serves there' : details;
  return new CountersignError(errorCodeOfGrpcStatus(code), `${socketPath}: ${said}`, { cause: thrown });
}

function malformed(socketPath: string, thrown: unknown): CountersignError {
  return new CountersignError('bad-input', `${socketPath}: the answer is malformed: ${asError(thrown).message}`);
}

function readResponse(response: X509SVIDResponse): FetchedSvid[] {
  if (response.svids.length === 0) throw new Error('it holds no SVID');
  const federatedBundles = new Map(
    Object.entries(response.federatedBundles).map(([name, bundle]) => {
      const id = parseSpiffeId(name);
      if (!id.ok || id.value.path !== '') throw new Error('a federated bundle is not named by a trust domain');
      return [id.value.trustDomain, splitCertificates(bundle)] as const;
    }),
  );
  return response.svids.map((svid) => {
    const id = parseSpiffeId(svid.spiffeId);
    if (!id.ok) throw new Error(id.error);
    return {
      spiffeId: id.value.id,
      chain: splitCertificates(svid.x509Svid),
      privateKey: privateKeyFromDer(svid.x509SvidKey),
      bundle: splitCertificates(svid.bundle),
      hint: svid.hint,
      federatedBundles,
      crls: response.crl,
    };
  });
}

function readJwtSvid(response: JWTSVIDResponse): FetchedJwtSvid {
  const [svid] = response.svids;
  if (svid === undefined) throw new Error('it holds no SVID');
  const claims = claimsOf(svid.svid);
  if (typeof claims.exp !== 'number') throw new Error('its token has no end');
  const issuedAt = typeof claims.iat === 'number' ? claims.iat : Date.now() / 1000;
  return {
    spiffeId: spiffeId(svid.spiffeId),
    token: svid.svid,
    issuedAtMs: issuedAt * 1000,
    expiresAtMs: claims.exp * 1000,
  };
}

/** The standard concatenates certificates without a separator: each says its own length. */
function splitCertificates(concatenated: Buffer): Buffer[] {
  const read = (reader: DerReader) => {
    const certificates: Buffer[] = [];
    while (!reader.atEnd) certificates.push(Buffer.from(reader.whole(TAG.sequence)));
    return certificates;
  };
  const certificates = readDer(concatenated, MAX_CERTIFICATES_BYTES, read);
  if (!certificates.ok) throw new Error(`the certificates are ${certificates.error}`);
  if (certificates.value.length === 0) throw new Error('a list of certificates is empty');
  return certificates.value;
}

/** An error of JSON.parse would repeat the token. */
function claimsOf(token: string): { readonly iat?: unknown; readonly exp?: unknown } {
  let claims: unknown;
  try {
    claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8'));
  } catch {
    throw new Error('its token is no JWT');
  }
  if (typeof claims !== 'object' || claims === null) throw new Error('its token is no JWT');
  return claims;
}
