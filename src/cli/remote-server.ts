/** An identity server on another machine: who asks, by an SVID of this trust domain, and that it is the identity server who answers. */
import { existsSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { targetOf } from '../agent/server-client/addresses.ts';
import { PinnedCredentials } from '../agent/server-client/transport.ts';
import { CountersignError } from '../base/errors.ts';
import { readPrivateFile, readPublicFile } from '../base/private-file.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { parseCertificate } from '../pki/certificate.ts';
import { privateKeyFromPem } from '../pki/keys.ts';
import { decodePem } from '../pki/pem.ts';
import type { RemoteServer } from './admin-client.ts';

const WORKLOAD_SOCKET = '/run/countersign/workload.sock';

interface Identity {
  readonly svid: Svid;
  readonly bundle: TrustBundle;
}

/**
 * @param server "HOST:PORT", or several with commas between: the first that takes the connection is asked
 * @param where a directory as `svid fetch --write` makes it, or "unix:PATH" of a Workload API. Left out: the Workload API's
 * usual socket. @throws CountersignError
 */
export async function remoteServer(server: string | undefined, where: string | undefined): Promise<RemoteServer> {
  if (server === undefined) throw new CountersignError('bad-input', '--svid: only with --server; name the server too');
  const servers = server.split(',');
  if (!servers.every((one) => /^([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}$/.test(one))) {
    const message = `--server ${server}: write it as HOST:PORT or [IPv6]:PORT, several with commas between`;
    throw new CountersignError('bad-input', message);
  }
  const { svid, bundle } = await identity(where ?? process.env.SPIFFE_ENDPOINT_SOCKET ?? `unix:${WORKLOAD_SOCKET}`);
  const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
  const target = servers.length === 1 ? `dns:${server}` : targetOf(servers);
  return { target, credentials: new PinnedCredentials({ bundle, svid, clock }) };
}

async function identity(where: string): Promise<Identity> {
  if (!where.startsWith('unix:')) return fromDirectory(where);
  const { fetchX509Svid } = await import('../workload/client.ts');
  const { spiffeId, chain, privateKey, bundle } = await fetchX509Svid(where.replace(/^unix:(?:\/\/)?/, ''));
  // what the agent hands out is valid now
  const svid = { spiffeId, chain, privateKey, notAfterMs: Number.POSITIVE_INFINITY };
  return { svid, bundle: { trustDomain: trustDomainOf(spiffeId), authorities: [...bundle] } };
}

function fromDirectory(named: string): Identity {
  if (!existsSync(named)) {
    throw new CountersignError(
      'bad-input',
      `--svid ${named}: not there; write one with: countersign svid fetch --write`,
    );
  }
  // `svid fetch` and `svid watch` keep what belongs together behind one link: resolved once, key and certificate fit
  const current = join(named, 'current');
  const dir = realpathSync(existsSync(current) ? current : named);
  const certificates = (name: string) => decodePem(readPublicFile(join(dir, name)).toString('utf8'), 'CERTIFICATE');
  const chain = certificates('svid.pem');
  const leaf = parseCertificate(chain[0]!);
  if (!leaf.ok || leaf.value.spiffeId === undefined) {
    throw new CountersignError('bad-input', `${join(dir, 'svid.pem')}: its first certificate is no X.509-SVID`);
  }
  const { spiffeId, notAfterMs } = leaf.value;
  const privateKey = privateKeyFromPem(readPrivateFile(join(dir, 'key.pem')).toString('utf8'));
  const bundle = { trustDomain: trustDomainOf(spiffeId), authorities: certificates('bundle.pem') };
  return { svid: { spiffeId, chain, privateKey, notAfterMs }, bundle };
}
