/**
 * Asks a bundle endpoint (SPIFFE Federation, section 5). The connection is authenticated before a byte is sent, by Web PKI or by the
 * bundle of the endpoint's trust domain; never on first use. Redirects are not followed, although section 5.2 lets clients do so: who
 * answers for a trust domain is for this configuration to say alone.
 */
import { type IncomingMessage, request } from 'node:http';
import { isIP } from 'node:net';
import { type ConnectionOptions, connect, getCACertificates, type TLSSocket } from 'node:tls';
import { err, ok, type Result } from '../../src/base/errors.ts';
import { readPublicFile } from '../../src/base/private-file.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { Timers } from '../../src/base/timers.ts';
import type { RevocationSubject, TrustBundle } from '../../src/model/identity.ts';
import type { SpiffeId, TrustDomain } from '../../src/model/ids.ts';
import { trustDomainOf } from '../../src/model/spiffe-id.ts';
import { presentedChain } from '../../src/pki/presented-chain.ts';
import { MAX_BUNDLE_LENGTH } from '../../src/pki/spiffe-bundle.ts';
import { verifyX509Svid } from '../../src/pki/verify.ts';
import type { ForeignTrustDomain } from './config.ts';

/** From the first packet to the last byte of the body. */
const DEADLINE_MS = 10_000;
const MAX_HEADER_BYTES = 16_384;
const MAX_CA_FILE_BYTES = 1 << 20;

export interface FetchFailure {
  readonly reason: ReasonCode;
  /** For people: what was seen. */
  readonly text: string;
}

export interface FetchContext {
  /** Of the endpoint's trust domain: the one fetched last, or given by an administrator. */
  readonly bundleOf: (trustDomain: TrustDomain) => TrustBundle | undefined;
  /** What this server has revoked itself: of its own trust domain, should the endpoint be one of it. */
  readonly isRevoked: (subject: RevocationSubject) => boolean;
  readonly nowMs: () => number;
  readonly timers: Timers;
  readonly signal: AbortSignal;
}

/** The body of the answer, which proves nothing but who sent it. */
export async function fetchBundle(
  endpoint: Omit<ForeignTrustDomain, 'trustDomain'>,
  context: FetchContext,
): Promise<Result<string, FetchFailure>> {
  const abort = new AbortController();
  const give = () => abort.abort();
  const cancel = context.timers.set(DEADLINE_MS, give);
  context.signal.addEventListener('abort', give, { once: true });
  let socket: TLSSocket | undefined;
  try {
    const opened = await open(endpoint, context, abort.signal);
    if (!opened.ok) return opened;
    socket = opened.value;
    return await get(endpoint.endpointUrl, socket, abort.signal);
  } finally {
    cancel();
    context.signal.removeEventListener('abort', give);
    socket?.destroy();
  }
}

const failure = (reason: ReasonCode, text: string) => err({ reason, text });
const late = () => failure('BUNDLE_UNREACHABLE', `no whole answer within ${DEADLINE_MS / 1000} seconds`);

/** A connection to the endpoint that the profile says it is. */
async function open(
  { endpointUrl, profile, caFile }: Omit<ForeignTrustDomain, 'trustDomain'>,
  context: FetchContext,
  signal: AbortSignal,
): Promise<Result<TLSSocket, FetchFailure>> {
  const host = endpointUrl.hostname.replace(/^\[(.*)\]$/, '$1');
  const options: ConnectionOptions = {
    host,
    port: endpointUrl.port === '' ? 443 : Number(endpointUrl.port),
    minVersion: 'TLSv1.2',
    // RFC 6066, section 3: an address is no server name
    ...(isIP(host) === 0 ? { servername: host } : {}),
  };
  if (profile === 'https_web') {
    try {
      const ca = caFile === undefined ? getCACertificates('system') : readPublicFile(caFile, MAX_CA_FILE_BYTES);
      return await handshake({ ...options, ca: ca as string[] | Buffer, rejectUnauthorized: true }, signal);
    } catch (thrown) {
      return failure('BUNDLE_ENDPOINT_UNTRUSTED', (thrown as Error).message);
    }
  }
  const { https_spiffe: endpointId } = profile;
  const bundle = context.bundleOf(trustDomainOf(endpointId));
  if (bundle === undefined) {
    const trustDomain = trustDomainOf(endpointId);
    return failure(
      'BUNDLE_ENDPOINT_UNTRUSTED',
      `there is no bundle of ${trustDomain} to verify it with; give the first one: countersign bundle set ${trustDomain}`,
    );
  }
  // SPIFFE says what the certificate must be, not OpenSSL: it is judged before anything is sent
  const opened = await handshake({ ...options, ca: [], rejectUnauthorized: false }, signal);
  if (!opened.ok) return opened;
  const problem = checkEndpoint(opened.value, endpointId, bundle, context);
  if (problem === undefined) return opened;
  opened.value.destroy();
  return failure('BUNDLE_ENDPOINT_UNTRUSTED', problem);
}

/** Section 5.2.2.4: a valid X509-SVID of exactly the configured SPIFFE ID. */
function checkEndpoint(
  socket: TLSSocket,
  wanted: SpiffeId,
  bundle: TrustBundle,
  { nowMs, isRevoked }: FetchContext,
): string | undefined {
  if (socket.isSessionReused()) return 'it resumed a session, in which no certificate is shown';
  const verified = verifyX509Svid(presentedChain(socket), bundle, nowMs());
  if (!verified.ok) return `its certificate does not verify: ${verified.error}`;
  const { spiffeId, leaf, authorities } = verified.value;
  if (spiffeId !== wanted) return `it is ${spiffeId}, not ${wanted}`;
  const { serial, nodeBinding: node, notBeforeMs } = leaf;
  return isRevoked({ spiffeId, serial, node, notBeforeMs, authorities }) ? 'its certificate is revoked' : undefined;
}

function handshake(options: ConnectionOptions, signal: AbortSignal): Promise<Result<TLSSocket, FetchFailure>> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve(late());
    const socket = connect(options);
    const end = (result: Result<TLSSocket, FetchFailure>) => {
      signal.removeEventListener('abort', aborted);
      if (!result.ok) socket.destroy();
      resolve(result);
    };
    const aborted = () => end(late());
    signal.addEventListener('abort', aborted, { once: true });
    socket.once('secureConnect', () => end(ok(socket)));
    // stays: a connection may still break after it was handed on
    socket.on('error', (error: NodeJS.ErrnoException) => end(failure(reasonOf(error), describe(error))));
    socket.once('close', () => end(failure('BUNDLE_UNREACHABLE', 'it closed the connection')));
  });
}

/** Failures of the network have a system call; those of TLS and of the certificate do not. */
function reasonOf(error: NodeJS.ErrnoException): ReasonCode {
  return error.syscall === undefined && error.code !== 'ECONNRESET'
    ? 'BUNDLE_ENDPOINT_UNTRUSTED'
    : 'BUNDLE_UNREACHABLE';
}

function describe(error: NodeJS.ErrnoException): string {
  return (error.code ?? error.message).slice(0, 200);
}

function get(url: URL, socket: TLSSocket, signal: AbortSignal): Promise<Result<string, FetchFailure>> {
  return new Promise((resolve) => {
    const sent = request({
      createConnection: () => socket,
      method: 'GET',
      path: `${url.pathname}${url.search}`,
      headers: { host: url.host, accept: 'application/json', 'accept-encoding': 'identity', connection: 'close' },
      maxHeaderSize: MAX_HEADER_BYTES,
    });
    const end = (result: Result<string, FetchFailure>) => {
      signal.removeEventListener('abort', aborted);
      sent.destroy();
      resolve(result);
    };
    const aborted = () => end(late());
    signal.addEventListener('abort', aborted, { once: true });
    sent.on('error', (error) => end(failure('BUNDLE_UNREACHABLE', describe(error))));
    sent.once('response', (response) => {
      const problem = checkResponse(response);
      if (problem !== undefined) return end(failure('BUNDLE_MALFORMED', problem));
      const chunks: Buffer[] = [];
      let length = 0;
      response.on('data', (chunk: Buffer) => {
        length += chunk.length;
        if (length > MAX_BUNDLE_LENGTH) end(failure('BUNDLE_MALFORMED', `more than ${MAX_BUNDLE_LENGTH} bytes`));
        else chunks.push(chunk);
      });
      response.once('end', () => end(response.complete ? text(Buffer.concat(chunks)) : late()));
      response.once('error', (error) => end(failure('BUNDLE_UNREACHABLE', describe(error))));
      response.once('close', () => end(failure('BUNDLE_UNREACHABLE', 'it closed the connection')));
    });
    sent.end();
  });
}

function checkResponse({ statusCode = 0, headers }: IncomingMessage): string | undefined {
  if (statusCode >= 300 && statusCode < 400)
    return `it redirects (${statusCode}), which is not followed; configure the URL that it redirects to`;
  if (statusCode !== 200) return `it answers with status ${statusCode}`;
  const encoding = headers['content-encoding'];
  if (encoding !== undefined && encoding !== 'identity') return 'it answers in an encoding that was not asked for';
  const announced = Number(headers['content-length'] ?? 0);
  return announced > MAX_BUNDLE_LENGTH ? `more than ${MAX_BUNDLE_LENGTH} bytes` : undefined;
}

function text(body: Buffer): Result<string, FetchFailure> {
  try {
    return ok(new TextDecoder('utf-8', { fatal: true }).decode(body));
  } catch {
    return failure('BUNDLE_MALFORMED', 'not UTF-8');
  }
}
