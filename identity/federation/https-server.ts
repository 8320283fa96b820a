/**
 * A small HTTPS server of a few documents that anybody may read: GET, no client certificate (SPIFFE Federation, sections 5.2.1.3 and
 * 5.2.2.3), nothing of a request used but its path. Whoever is slow or many is cut off.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { SecureContextOptions } from 'node:tls';
import { CountersignError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';

/** ms. A reader that takes nothing for `idle` is sent away. */
const DEADLINES = { handshake: 5_000, headers: 5_000, request: 10_000, idle: 10_000, check: 1_000 };
const MAX_HEADER_BYTES = 8192;
const MAX_CONNECTIONS = 512;

/** "Mozilla intermediate compatibility" (section 5.2): TLS 1.2 and 1.3, forward secrecy and AEAD only. */
const TLS_OPTIONS = {
  minVersion: 'TLSv1.2',
  ciphers: [
    'TLS_AES_128_GCM_SHA256',
    'TLS_AES_256_GCM_SHA384',
    'TLS_CHACHA20_POLY1305_SHA256',
    'ECDHE-ECDSA-AES128-GCM-SHA256',
    'ECDHE-RSA-AES128-GCM-SHA256',
    'ECDHE-ECDSA-AES256-GCM-SHA384',
    'ECDHE-RSA-AES256-GCM-SHA384',
    'ECDHE-ECDSA-CHACHA20-POLY1305',
    'ECDHE-RSA-CHACHA20-POLY1305',
  ].join(':'),
} as const satisfies SecureContextOptions;

export interface HttpsServerOptions {
  /** The setting that it comes from, for errors. */
  readonly field: string;
  readonly address: string;
  readonly port: number;
  readonly credentials: TlsCredentials;
  /** JSON by path. Read anew for each request. */
  readonly documents: Readonly<Record<string, () => Promise<string> | string>>;
  readonly log: Logger;
  /** Shorter in tests. */
  readonly deadlines?: typeof DEADLINES;
}

/** Certificate chain and key, PEM. */
export interface TlsPair {
  readonly cert: string;
  readonly key: string;
}

export interface TlsCredentials {
  readonly current: TlsPair;
  /** Calls back after each change, until it is closed. */
  watch(changed: () => void): () => void;
}

/** Returns what stops it. @throws CountersignError unavailable, or bad-input for a certificate that TLS does not take */
export async function serveHttps(options: HttpsServerOptions): Promise<() => void> {
  const { field, address, port, credentials, log } = options;
  const server = createTlsServer(options);
  const stopWatching = credentials.watch(() => {
    try {
      server.setSecureContext({ ...TLS_OPTIONS, ...credentials.current });
    } catch (thrown) {
      log.error({ err: thrown, field }, 'the new certificate is not taken; the one before stays in use');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      stopWatching();
      const message = `${field}.listen: ${address} port ${port}: cannot listen (${error.code}); is the port taken, is the address this host's?`;
      reject(new CountersignError('unavailable', message, { cause: error }));
    });
    server.listen({ host: address, port }, resolve);
  });
  server.on('error', (err) => log.error({ err, field }, 'an HTTPS server failed'));
  const bound = server.address();
  log.info({ field, address, port: typeof bound === 'object' ? bound?.port : port }, 'serving documents over HTTPS');
  return () => {
    stopWatching();
    server.close();
    server.closeAllConnections();
  };
}

function createTlsServer({ field, credentials, documents, log, deadlines = DEADLINES }: HttpsServerOptions): Server {
  let server: Server;
  try {
    server = createServer(
      {
        ...TLS_OPTIONS,
        ...credentials.current,
        handshakeTimeout: deadlines.handshake,
        headersTimeout: deadlines.headers,
        requestTimeout: deadlines.request,
        connectionsCheckingInterval: deadlines.check,
        maxHeaderSize: MAX_HEADER_BYTES,
      },
      (request, response) => {
        answer(documents, request, response).catch((thrown: unknown) => {
          log.error({ err: thrown, field }, 'a document could not be made');
          refuse(response, 500);
        });
      },
    );
  } catch (thrown) {
    const message = `${field}: certificate and key are not taken by TLS; are they PEM, and of one pair?`;
    throw new CountersignError('bad-input', message, { cause: thrown });
  }
  server.maxConnections = MAX_CONNECTIONS;
  server.maxRequestsPerSocket = 1;
  server.timeout = deadlines.idle;
  return server;
}

async function answer(
  documents: HttpsServerOptions['documents'],
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = (request.url ?? '').split('?', 1)[0]!;
  if (!Object.hasOwn(documents, path)) return refuse(response, 404);
  if (request.method !== 'GET') {
    response.setHeader('allow', 'GET');
    return refuse(response, 405);
  }
  const body = Buffer.from(await documents[path]!());
  response.writeHead(200, {
    'content-type': 'application/json',
    'content-length': body.length,
    // keys are taken back sooner than a cache would forget them
    'cache-control': 'no-cache',
    'x-content-type-options': 'nosniff',
    connection: 'close',
  });
  response.end(body);
}

function refuse(response: ServerResponse, code: number): void {
  if (response.headersSent) response.destroy();
  else response.writeHead(code, { 'content-length': 0, connection: 'close' }).end();
}
