/** Vault's HTTP API, as much of it as signing an intermediate takes. Nothing secret gets into a message. */
import { request } from 'node:https';
import { getCACertificates } from 'node:tls';
import { z } from 'zod';
import { asError, CountersignError } from '../../src/base/errors.ts';

const MAX_RESPONSE_BYTES = 256 * 1024;
const MAX_ERROR_CHARACTERS = 300;

export interface VaultEndpoint {
  /** https://host:port, without a path. */
  readonly address: string;
  /** PEM. undefined: the operating system's authorities. */
  readonly ca: string | undefined;
  readonly namespace: string | undefined;
  /** For one whole request, ms. */
  readonly timeoutMs: number;
}

interface Response {
  readonly status: number;
  readonly location: string | undefined;
  readonly text: string;
}

const errorsSchema = z.object({ errors: z.array(z.string()).optional() });

/**
 * POST to /v1/`path`. Follows the one redirect with which a standby names the active node.
 * @param advice by status: what to do about it.
 * @throws CountersignError unavailable (not reached, sealed, too slow), permission-denied or bad-input.
 */
export async function postToVault(
  endpoint: VaultEndpoint,
  path: string,
  token: string | undefined,
  body: Readonly<Record<string, unknown>>,
  advice: Readonly<Record<number, string>>,
): Promise<unknown> {
  const text = JSON.stringify(body);
  const signal = AbortSignal.timeout(endpoint.timeoutMs);
  let url = new URL(`/v1/${path}`, endpoint.address);
  let response = await send(endpoint, url, token, text, signal);
  if (response.status === 307 || response.status === 308) {
    url = activeNode(url, response.location);
    response = await send(endpoint, url, token, text, signal);
  }
  const { status } = response;
  if (status === 204) return undefined;
  const parsed = parseJson(response.text);
  if (status === 200 && parsed !== undefined) return parsed;
  throw refusal(url, path, status, parsed, advice[status]);
}

function activeNode(from: URL, location: string | undefined): URL {
  const to = location !== undefined && URL.canParse(location, from.href) ? new URL(location, from) : undefined;
  if (to !== undefined && to.protocol === 'https:') return to;
  throw new CountersignError(
    'bad-input',
    `Vault at ${from.host} redirects to where no token is sent; set ca.upstream.address to the active node`,
  );
}

function send(
  endpoint: VaultEndpoint,
  url: URL,
  token: string | undefined,
  text: string,
  signal: AbortSignal,
): Promise<Response> {
  const { ca, namespace } = endpoint;
  return new Promise((resolve, reject) => {
    const fail = (thrown: unknown) => reject(unreachable(url, signal.aborted ? endpoint.timeoutMs : undefined, thrown));
    const sent = request(
      url,
      {
        method: 'POST',
        agent: false,
        signal,
        minVersion: 'TLSv1.2',
        rejectUnauthorized: true,
        // Node's own list of authorities is not the operating system's
        ca: ca ?? getCACertificates('system'),
        headers: {
          'Content-Type': 'application/json',
          'Content-Length': Buffer.byteLength(text),
          // what Vault's agent and proxy may ask for against forged requests
          'X-Vault-Request': 'true',
          ...(token === undefined ? {} : { 'X-Vault-Token': token }),
          ...(namespace === undefined ? {} : { 'X-Vault-Namespace': namespace }),
        },
      },
      (incoming) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        incoming.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > MAX_RESPONSE_BYTES) sent.destroy(new Error(`an answer of more than ${MAX_RESPONSE_BYTES} bytes`));
          else chunks.push(chunk);
        });
        incoming.on('error', fail);
        incoming.on('end', () =>
          resolve({
            status: incoming.statusCode ?? 0,
            location: incoming.headers.location,
            text: Buffer.concat(chunks).toString('utf8'),
          }),
        );
      },
    );
    sent.on('error', fail);
    sent.end(text);
  });
}

function unreachable(url: URL, timedOutMs: number | undefined, thrown: unknown): CountersignError {
  const { code } = thrown as NodeJS.ErrnoException;
  const why =
    timedOutMs !== undefined
      ? `it did not answer within ${timedOutMs / 1000} s; see whether it is up, or raise ca.upstream.timeoutSeconds`
      : isTlsProblem(code)
        ? `its TLS certificate is not trusted (${code}); name its CA by ca.upstream.caFile, or correct ca.upstream.address`
        : `it cannot be reached (${code ?? asError(thrown).message}); correct ca.upstream.address, or see whether it is up`;
  return new CountersignError('unavailable', `Vault at ${url.host}: ${why}`, { cause: thrown });
}

function isTlsProblem(code: string | undefined): boolean {
  return code !== undefined && /CERT|^ERR_TLS|SIGNATURE|ISSUER|^EPROTO$|^ERR_SSL/.test(code);
}

function refusal(
  url: URL,
  path: string,
  status: number,
  parsed: unknown,
  advice: string | undefined,
): CountersignError {
  const { data } = errorsSchema.safeParse(parsed);
  const said = (data?.errors ?? [])
    .join('; ')
    .replace(/[^\x20-\x7e]+/g, ' ')
    .slice(0, MAX_ERROR_CHARACTERS);
  const code = status === 403 ? 'permission-denied' : status >= 500 || status === 429 ? 'unavailable' : 'bad-input';
  const fix = advice ?? (status >= 500 ? 'see whether it is unsealed and healthy' : 'see what it says');
  return new CountersignError(
    code,
    `Vault at ${url.host} answers ${path} with ${status}${said === '' ? '' : ` (${said})`}; ${fix}`,
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
