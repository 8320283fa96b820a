/** What a test of federation needs beside identity servers: certificates as the web has them, ports, and the administrator's calls. */
import { randomInt } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { BundleAdminClient, CaAdminClient, type JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { privateKeyPem } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { ca, dns, type Forged, type ForgeOptions, forge, KU } from '../pki/support/forge.ts';
import type { TestServer } from './harness.ts';

const times = { notBeforeMs: Date.now() - 60_000, notAfterMs: Date.now() + 3_600_000 };
const webRoot = ca({ uris: [], ...times });
/** PEM. */
export const webAuthority = encodePem('CERTIFICATE', webRoot.der);

/** A certificate of the authority for localhost. */
export function webLeaf(more: ForgeOptions = {}): Forged {
  return forge({
    issuer: webRoot,
    ca: { isCa: false },
    keyUsage: [KU.digitalSignature],
    extKeyUsage: [OID.serverAuth],
    otherNames: [dns('localhost')],
    ...times,
    ...more,
  });
}

/** One in files, as the settings of an HTTPS server name them. */
export function webCertificate(dir: string, name: string): { certificateFile: string; keyFile: string } {
  const shown = webLeaf();
  const files = { certificateFile: join(dir, `${name}.crt`), keyFile: join(dir, `${name}.key`) };
  writeFileSync(files.certificateFile, encodePem('CERTIFICATE', shown.der));
  writeFileSync(files.keyFile, privateKeyPem(shown.key), { mode: 0o600 });
  return files;
}

/** Below the range that the kernel gives to outgoing connections, so that none takes it meanwhile. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(20_000, 30_000);
    const probe = createServer();
    const free = await new Promise<boolean>((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => resolve(true));
    });
    await new Promise((resolve) => probe.close(resolve));
    if (free) return port;
  }
}

type Reply = (error: Error | null, reply: JsonReply) => void;
type Row = Record<string, unknown>;

function ask<C extends { close(): void }>(client: C, method: (client: C, done: Reply) => unknown): Promise<Row> {
  return new Promise<Row>((resolve, reject) => {
    method(client, (error, reply) => (error === null ? resolve(JSON.parse(reply.json) as Row) : reject(error)));
  }).finally(() => client.close());
}

const target = (server: TestServer) => `unix:${join(server.dir, 'admin.sock')}`;

export const bundles = (server: TestServer, method: (client: BundleAdminClient, done: Reply) => unknown) =>
  ask(new BundleAdminClient(target(server), credentials.createInsecure()), method);

export const authorities = (server: TestServer, method: (client: CaAdminClient, done: Reply) => unknown) =>
  ask(new CaAdminClient(target(server), credentials.createInsecure()), method);
