/** What somebody between us and a bundle endpoint, or an endpoint gone bad, can try. Each is a real TLS server. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage as Request, ServerResponse as Response } from 'node:http';
import { createServer, type ServerOptions } from 'node:https';
import { type AddressInfo, createServer as createTcpServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import type { ForeignTrustDomain } from '../../../identity/federation/config.ts';
import { type FetchContext, fetchBundle } from '../../../identity/federation/fetch.ts';
import { systemTimers, type Timers } from '../../../src/base/timers.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { SpiffeId, TrustDomain } from '../../../src/model/ids.ts';
import { privateKeyPem } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { MAX_BUNDLE_LENGTH } from '../../../src/pki/spiffe-bundle.ts';
import { ca, dns, type Forged, type ForgeOptions, forge, KU, leaf, name } from '../pki/support/forge.ts';

const NOW = Date.now();
const times = { notBeforeMs: NOW - 60_000, notAfterMs: NOW + 3_600_000 };
const PARTNER = 'partner.org' as TrustDomain;
const ENDPOINT = 'spiffe://partner.org/countersign/server' as SpiffeId;
const DOCUMENT = '{"keys":[],"spiffe_sequence":1}';

const root = ca({ uris: ['spiffe://partner.org'], ...times });
const bundles: TrustBundle[] = [{ trustDomain: PARTNER, authorities: [root.der] }];
const svid = (options: ForgeOptions = {}, issuer = root) => leaf(issuer, { uris: [ENDPOINT], ...times, ...options });

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

const pem = (certificate: Forged) => encodePem('CERTIFICATE', certificate.der);
const tls = (shown: Forged, ...above: Forged[]) => ({
  cert: [shown, ...above].map(pem).join(''),
  key: privateKeyPem(shown.key),
});

/** Returns its URL. */
async function serve(
  options: ServerOptions,
  answer: (request: Request, response: Response) => unknown = plain,
): Promise<URL> {
  const server = createServer(options, answer);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(() => {
    server.close();
    server.closeAllConnections();
  });
  return new URL(`https://localhost:${(server.address() as AddressInfo).port}/bundle`);
}
function plain(_: Request, response: Response): void {
  response.end(DOCUMENT);
}

/** The deadline comes when the test says so. */
class OneTimer implements Timers {
  #fire = () => {};
  set(_ms: number, fn: () => void): () => void {
    this.#fire = fn;
    return () => {
      this.#fire = () => {};
    };
  }
  fire(): void {
    this.#fire();
  }
}

async function outcome(
  endpointUrl: URL,
  profile: ForeignTrustDomain['profile'] = { https_spiffe: ENDPOINT },
  more: {
    caFile?: string;
    timers?: Timers;
    trusted?: readonly TrustBundle[];
    isRevoked?: FetchContext['isRevoked'];
  } = {},
): Promise<string> {
  const { timers = systemTimers, trusted = bundles, isRevoked = () => false, ...endpoint } = more;
  const fetched = await fetchBundle(
    { endpointUrl, profile, ...endpoint },
    {
      bundleOf: (trustDomain) => trusted.find((bundle) => bundle.trustDomain === trustDomain),
      isRevoked,
      nowMs: Date.now,
      timers,
      signal: new AbortController().signal,
    },
  );
  return fetched.ok ? fetched.value : `${fetched.error.reason} ${fetched.error.text}`;
}

describe('an https_spiffe endpoint', () => {
  it('that shows an SVID of the configured SPIFFE ID is asked with a GET', async () => {
    let asked: Request | undefined;
    const url = await serve(tls(svid()), (request: Request, response: Response) => {
      asked = request;
      response.end(DOCUMENT);
    });
    expect(await outcome(new URL(`${url.href}?of=partner`))).toBe(DOCUMENT);
    expect(asked).toMatchObject({ method: 'GET', url: '/bundle?of=partner' });
    expect(asked?.headers).toMatchObject({ host: url.host, 'accept-encoding': 'identity' });
  });

  it('whose SVID comes with its intermediate is asked', async () => {
    const intermediate = ca({ issuer: root, uris: ['spiffe://partner.org'], ...times });
    expect(await outcome(await serve(tls(svid({}, intermediate), intermediate)))).toBe(DOCUMENT);
  });

  const otherRoot = ca({ uris: ['spiffe://partner.org'], ...times });
  const homeRoot = ca({ uris: ['spiffe://example.org'], ...times });
  it.each<[string, Forged, string]>([
    [
      'of somebody else in the same trust domain',
      svid({ uris: ['spiffe://partner.org/web'] }),
      'it is spiffe://partner.org/web, not spiffe://partner.org/countersign/server',
    ],
    ['signed by an authority that the bundle does not have', svid({}, otherRoot), 'CERT_'],
    ['signed by our own authority', svid({}, homeRoot), 'CERT_'],
    ['signed by itself', ca({ uris: [ENDPOINT], ...times }), 'CERT_LEAF_IS_CA'],
    ['of the trust domain itself', root, 'CERT_LEAF_IS_CA'],
    ['that has expired', svid({ notAfterMs: NOW - 1000 }), 'CERT_EXPIRED'],
    ['of our own trust domain', svid({ uris: ['spiffe://example.org/countersign/server'] }), 'CERT_TRUST_DOMAIN'],
    [
      'with a name and no SPIFFE ID',
      leaf(root, { uris: [], otherNames: [dns('localhost')], ...times }),
      'CERT_URI_SAN_COUNT',
    ],
    ['with two SPIFFE IDs', svid({ uris: [ENDPOINT, 'spiffe://partner.org/b'] }), 'CERT_URI_SAN_COUNT'],
  ])('with an SVID %s is refused, and is sent nothing', async (_, shown, text) => {
    let asked = false;
    const url = await serve(tls(shown), () => {
      asked = true;
    });
    const refusal = await outcome(url);
    expect(refusal).toContain('BUNDLE_ENDPOINT_UNTRUSTED');
    expect(refusal).toContain(text);
    expect(asked).toBe(false);
  });

  it('is not trusted on first use', async () => {
    const refusal = await outcome(await serve(tls(svid())), undefined, { trusted: [] });
    expect(refusal).toBe(
      'BUNDLE_ENDPOINT_UNTRUSTED there is no bundle of partner.org to verify it with; give the first one: countersign bundle set partner.org',
    );
  });

  it('whose trust domain has revoked all its keys is refused', async () => {
    const trusted = [{ trustDomain: PARTNER, authorities: [] }];
    expect(await outcome(await serve(tls(svid())), undefined, { trusted })).toContain('BUNDLE_ENDPOINT_UNTRUSTED');
  });

  it('whose SVID was revoked here is refused', async () => {
    const seen: string[] = [];
    const isRevoked: FetchContext['isRevoked'] = ({ spiffeId, serial }) => seen.push(spiffeId, serial) > 0;
    const refusal = await outcome(await serve(tls(svid())), undefined, { isRevoked });
    expect(refusal).toBe('BUNDLE_ENDPOINT_UNTRUSTED its certificate is revoked');
    expect(seen).toEqual([ENDPOINT, '1122334455667788']);
  });

  it('of another trust domain than the bundle is verified with the bundle of its own', async () => {
    const hub = ca({ uris: ['spiffe://hub.org'], ...times });
    const url = await serve(tls(leaf(hub, { uris: ['spiffe://hub.org/bundles'], ...times })));
    const trusted = [...bundles, { trustDomain: 'hub.org' as TrustDomain, authorities: [hub.der] }];
    expect(await outcome(url, { https_spiffe: 'spiffe://hub.org/bundles' as SpiffeId }, { trusted })).toBe(DOCUMENT);
  });
});

describe('an https_web endpoint', () => {
  const webRoot = ca({ uris: [], ...times });
  const web = (names: Buffer[] = [dns('localhost')], issuer = webRoot) =>
    leaf(issuer, { uris: [], otherNames: names, ...times });
  const dir = mkdtempSync(join(tmpdir(), 'cs-fetch-'));
  const caFile = join(dir, 'ca.pem');
  writeFileSync(caFile, pem(webRoot));
  const usual = { keyUsage: [KU.digitalSignature], extKeyUsage: [OID.serverAuth, OID.clientAuth], ca: { isCa: false } };
  afterAll(() => rmSync(dir, { recursive: true }));

  it('with a certificate of the authority for its host name is asked', async () => {
    expect(await outcome(await serve(tls(web())), 'https_web', { caFile })).toBe(DOCUMENT);
  });

  it.each<[string, Forged, string]>([
    ['for another host', web([dns('evil.example')]), 'ERR_TLS_CERT_ALTNAME_INVALID'],
    [
      'of another authority',
      web([dns('localhost')], ca({ uris: [], subject: name('Other'), ...times })),
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    ],
    [
      'of another authority of the same name',
      web([dns('localhost')], ca({ uris: [], ...times })),
      'CERT_SIGNATURE_FAILURE',
    ],
    ['signed by itself', forge({ ...usual, otherNames: [dns('localhost')], ...times }), 'DEPTH_ZERO_SELF_SIGNED_CERT'],
    [
      'that has expired',
      leaf(webRoot, { uris: [], otherNames: [dns('localhost')], ...times, notAfterMs: NOW - 1000 }),
      'CERT_HAS_EXPIRED',
    ],
    [
      'that is a good SVID, which counts for nothing here',
      svid({}, ca({ uris: ['spiffe://partner.org'], subject: name('Partner'), ...times })),
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    ],
  ])('with a certificate %s is refused, and is sent nothing', async (_, shown, code) => {
    let asked = false;
    const url = await serve(tls(shown), () => {
      asked = true;
    });
    const refusal = await outcome(url, 'https_web', { caFile });
    expect(refusal).toContain('BUNDLE_ENDPOINT_UNTRUSTED');
    expect(refusal).toContain(code);
    expect(asked).toBe(false);
  });

  it('is verified with the authorities of the operating system if no others are given', async () => {
    expect(await outcome(await serve(tls(web())), 'https_web')).toMatch(/^BUNDLE_ENDPOINT_UNTRUSTED UNABLE_TO_VERIFY/);
  });

  it('whose authorities cannot be read is refused by name', async () => {
    const missing = join(dir, 'missing.pem');
    expect(await outcome(await serve(tls(web())), 'https_web', { caFile: missing })).toContain(missing);
  });
});

describe('an answer', () => {
  const answered = async (answer: (request: Request, response: Response) => unknown, timers?: Timers) =>
    outcome(await serve(tls(svid()), answer), undefined, timers === undefined ? {} : { timers });

  it.each([301, 302, 303, 307, 308])('that redirects (%i) is not followed', async (status) => {
    let elsewhere = 0;
    const target = await serve(tls(svid()), (_, response) => {
      elsewhere += 1;
      response.end(DOCUMENT);
    });
    const refusal = await answered((_, response) => response.writeHead(status, { location: target.href }).end());
    expect(refusal).toBe(
      `BUNDLE_MALFORMED it redirects (${status}), which is not followed; configure the URL that it redirects to`,
    );
    expect(elsewhere).toBe(0);
  });

  it.each([204, 401, 404, 500])('with status %i is refused', async (status) => {
    expect(await answered((_, response) => response.writeHead(status).end())).toBe(
      `BUNDLE_MALFORMED it answers with status ${status}`,
    );
  });

  it('that announces 10 MB is refused before any of it is read', async () => {
    const refusal = await answered((_, response) => {
      response.writeHead(200, { 'content-length': 10_000_000 });
      response.write('{');
    });
    expect(refusal).toBe(`BUNDLE_MALFORMED more than ${MAX_BUNDLE_LENGTH} bytes`);
  });

  it('that sends 10 MB without saying so is cut off', async () => {
    let sent = 0;
    const refusal = await answered((_, response) => {
      const chunk = Buffer.alloc(100_000, 0x20);
      const more = () => {
        while (sent < 10_000_000 && !response.destroyed) {
          sent += chunk.length;
          if (!response.write(chunk)) return response.once('drain', more);
        }
        return response;
      };
      more();
    });
    expect(refusal).toBe(`BUNDLE_MALFORMED more than ${MAX_BUNDLE_LENGTH} bytes`);
    expect(sent).toBeLessThan(10_000_000);
  });

  it('that comes byte by byte without end is given up at the deadline', async () => {
    const timers = new OneTimer();
    const refusal = await answered((_, response) => {
      response.write('{');
      const dripping = setInterval(() => response.write(' '), 5);
      response.on('close', () => clearInterval(dripping));
      setTimeout(() => timers.fire(), 50);
    }, timers);
    expect(refusal).toBe('BUNDLE_UNREACHABLE no whole answer within 10 seconds');
  });

  it('that never comes is given up at the deadline', async () => {
    const timers = new OneTimer();
    expect(await answered(() => timers.fire(), timers)).toBe('BUNDLE_UNREACHABLE no whole answer within 10 seconds');
  });

  it('that breaks off is refused', async () => {
    const refusal = await answered((_, response) => {
      response.writeHead(200, { 'content-length': 100 });
      response.write('{"keys":[]}');
      setImmediate(() => response.destroy());
    });
    expect(refusal).toContain('BUNDLE_UNREACHABLE');
  });

  it('in an encoding that was not asked for is refused', async () => {
    const refusal = await answered((_, response) => response.writeHead(200, { 'content-encoding': 'gzip' }).end('x'));
    expect(refusal).toBe('BUNDLE_MALFORMED it answers in an encoding that was not asked for');
  });

  it('that is not UTF-8 is refused', async () => {
    expect(await answered((_, response) => response.end(Buffer.of(0x7b, 0xff, 0x7d)))).toBe(
      'BUNDLE_MALFORMED not UTF-8',
    );
  });

  it('with 100 KB of headers is refused', async () => {
    const refusal = await answered((_, response) => response.writeHead(200, { 'x-long': 'a'.repeat(100_000) }).end());
    expect(refusal).toContain('BUNDLE_UNREACHABLE HPE_HEADER_OVERFLOW');
  });
});

describe('an endpoint that', () => {
  const tcp = async (accept: (socket: Socket) => void) => {
    const server = createTcpServer(accept);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    closers.push(() => server.close());
    return new URL(`https://localhost:${(server.address() as AddressInfo).port}/`);
  };

  it('is not there is unreachable', async () => {
    const url = await tcp(() => {});
    closers.pop()!();
    expect(await outcome(url)).toBe('BUNDLE_UNREACHABLE ECONNREFUSED');
  });

  it('accepts and never speaks TLS is given up at the deadline', async () => {
    const timers = new OneTimer();
    const url = await tcp((socket) => {
      closers.push(() => socket.destroy());
      timers.fire();
    });
    expect(await outcome(url, undefined, { timers })).toBe('BUNDLE_UNREACHABLE no whole answer within 10 seconds');
  });

  it('speaks HTTP in clear is not believed', async () => {
    const url = await tcp((socket) => {
      socket.on('error', () => {});
      socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${DOCUMENT.length}\r\n\r\n${DOCUMENT}`);
    });
    expect(await outcome(url)).toContain('BUNDLE_ENDPOINT_UNTRUSTED');
  });

  it('speaks TLS 1.1 at most is not asked', async () => {
    const old = { maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' } as const;
    expect(await outcome(await serve({ ...tls(svid()), ...old }))).toContain('BUNDLE_');
  });
});
