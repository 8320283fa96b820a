/** An identity server on another machine: who asks, by an SVID of this trust domain, and that it is the identity server who answers. */
import { CountersignError } from '../base/errors.ts';
import { targetOf } from '../base/server-target.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { PinnedCredentials } from '../pki/server-credentials.ts';
import { readSvidDirectory } from '../pki/svid-directory.ts';
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
  if (!where.startsWith('unix:')) return readSvidDirectory(where, '--svid');
  const { fetchX509Svid } = await import('../workload/client.ts');
  const { spiffeId, chain, privateKey, bundle } = await fetchX509Svid(where.replace(/^unix:(?:\/\/)?/, ''));
  // what the agent hands out is valid now
  const svid = { spiffeId, chain, privateKey, notAfterMs: Number.POSITIVE_INFINITY };
  return { svid, bundle: { trustDomain: trustDomainOf(spiffeId), authorities: [...bundle] } };
}
