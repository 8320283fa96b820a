/** Agents of one identity server as their workloads see them: real streams of the Workload API, and what is on them at every moment. */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ClientReadableStream, credentials, Metadata } from '@grpc/grpc-js';
import { type AuthorityRequest, CaAdminClient, type JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import {
  type JWTSVIDResponse,
  SpiffeWorkloadAPIClient,
  type X509SVIDResponse,
} from '../../../proto/gen/spiffe/workload/workload.ts';
import type { ServerClient, ServerClientOptions } from '../../../src/agent/server-client/client.ts';
import { WorkloadSvids } from '../../../src/agent/server-client/svids.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { DerReader } from '../../../src/pki/der.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { startWorkloadApi } from '../../../src/workload/workload-api.ts';
import { type TestServer, TRUST_DOMAIN } from '../identity/harness.ts';

/** An entry that this very process matches. */
export const SELECTORS = [`unix:uid:${process.getuid!()}`];

/** What one message of FetchX509SVID holds. */
export interface Served {
  readonly chain: readonly Buffer[];
  readonly bundle: TrustBundle;
  readonly crls: readonly Buffer[];
  readonly federated: Readonly<Record<string, Buffer>>;
}

export interface StagedAgent {
  readonly client: ServerClient;
  readonly svids: WorkloadSvids;
  readonly socketPath: string;
  close(): Promise<void>;
}

const headers = new Metadata();
headers.set('workload.spiffe.io', 'true');

/** A client, its SVIDs and the Workload API on a socket, wired as the agent wires them. */
export async function stageAgent(
  server: TestServer,
  name: string,
  options: Partial<ServerClientOptions> & { stateName?: string } = {},
): Promise<StagedAgent> {
  const client = await server.client(name, options);
  const svids = new WorkloadSvids({ client, clock: server.clock, log: server.log, audit: { emit: () => {} } });
  const dir = mkdtempSync(join(tmpdir(), 'cs-rotation-'));
  chmodSync(dir, 0o755);
  const socketPath = join(dir, 'workload.sock');
  const api = await startWorkloadApi({
    socketPath,
    feed: svids,
    audit: { emit: () => {} },
    clock: server.clock,
    log: server.log,
  });
  let closed = false;
  const close = async () => {
    if (closed) return;
    closed = true;
    await api.close();
    svids.close();
    await client.close();
    rmSync(dir, { recursive: true, force: true });
  };
  server.onClose(close);
  return { client, svids, socketPath, close };
}

/** An open stream: each message is looked at as it comes. `failed` says how the stream ended, if it did. */
export class Watch {
  last: Served | undefined;
  readonly serials: string[] = [];
  failed: Error | undefined;
  readonly #rpc: SpiffeWorkloadAPIClient;
  readonly #stream: ClientReadableStream<X509SVIDResponse>;

  constructor(socketPath: string, seen: (served: Served) => void) {
    this.#rpc = new SpiffeWorkloadAPIClient(`unix:${socketPath}`, credentials.createInsecure());
    this.#stream = this.#rpc.fetchX509Svid({}, headers);
    this.#stream.on('data', (message: X509SVIDResponse) => {
      this.last = servedOf(message);
      this.serials.push(serialOf(this.last));
      seen(this.last);
    });
    this.#stream.on('error', (error: Error) => {
      this.failed ??= error;
    });
  }

  close(): void {
    this.failed ??= new Error('closed');
    this.#stream.cancel();
    this.#rpc.close();
  }
}

/** One call of FetchJWTSVID. */
export function fetchJwt(socketPath: string, audience: string): Promise<string> {
  const rpc = new SpiffeWorkloadAPIClient(`unix:${socketPath}`, credentials.createInsecure());
  return new Promise<string>((resolve, reject) => {
    rpc.fetchJwtsvid({ audience: [audience], spiffeId: '' }, headers, (error: unknown, reply?: JWTSVIDResponse) =>
      error === null ? resolve(reply!.svids[0]!.svid) : reject(error),
    );
  }).finally(() => rpc.close());
}

function servedOf({ svids: [svid], crl, federatedBundles }: X509SVIDResponse): Served {
  return {
    chain: certificatesIn(Buffer.from(svid!.x509Svid)),
    bundle: { trustDomain: TRUST_DOMAIN, authorities: certificatesIn(Buffer.from(svid!.bundle)) },
    crls: crl.map((der) => Buffer.from(der)),
    federated: Object.fromEntries(Object.entries(federatedBundles).map(([id, der]) => [id, Buffer.from(der)])),
  };
}

export function certificatesIn(concatenated: Buffer): Buffer[] {
  const reader = new DerReader(concatenated, 0, concatenated.length, 0);
  const found: Buffer[] = [];
  while (!reader.atEnd) found.push(reader.whole(0x30));
  return found;
}

export function serialOf({ chain: [leaf] }: Pick<Served, 'chain'>): string {
  const parsed = parseCertificate(leaf!);
  if (!parsed.ok) throw new Error(parsed.error);
  return parsed.value.serial;
}

/** Who signed the SVID: the key identifier. */
export function signerOf({ chain: [leaf] }: Pick<Served, 'chain'>): string {
  const parsed = parseCertificate(leaf!);
  return parsed.ok ? parsed.value.authorityKeyId!.toString('hex') : '';
}

/** undefined: it verifies. */
export function refusalOf({ chain }: Pick<Served, 'chain'>, bundle: TrustBundle, nowMs: number): string | undefined {
  const verified = verifyX509Svid(chain, bundle, nowMs);
  return verified.ok ? undefined : verified.error;
}

/** What an administrator does to signing keys; each resolves when every connected agent has it in force. */
export class KeyAdmin {
  readonly #rpc: CaAdminClient;

  constructor(server: TestServer) {
    this.#rpc = new CaAdminClient(`unix:${join(server.dir, 'admin.sock')}`, credentials.createInsecure());
    server.onClose(() => this.#rpc.close());
  }

  prepare = (kind: 'x509' | 'jwt') => this.#call('prepareAuthority', kind, '');
  activate = (kind: 'x509' | 'jwt') => this.#call('activateAuthority', kind, '');
  taint = (kind: 'x509' | 'jwt', id: string) => this.#call('taintAuthority', kind, id);
  revoke = (kind: 'x509' | 'jwt', id: string) => this.#call('revokeAuthority', kind, id);

  /** Of the one that signs now. */
  async active(kind: 'x509' | 'jwt'): Promise<string> {
    const reply = await new Promise<JsonReply>((resolve, reject) => {
      this.#rpc.listAuthorities({}, (error, r) => (error ? reject(error) : resolve(r)));
    });
    const { authorities } = JSON.parse(reply.json) as { authorities: { kind: string; id: string; state: string }[] };
    return authorities.find((one) => one.kind === kind && one.state === 'active')!.id;
  }

  #call(
    method: 'prepareAuthority' | 'activateAuthority' | 'taintAuthority' | 'revokeAuthority',
    kind: 'x509' | 'jwt',
    id: string,
  ): Promise<{ id: string; missing: string[] }> {
    const request: AuthorityRequest = { kind, id, reason: 'test', waitMs: 5000 };
    return new Promise((resolve, reject) => {
      this.#rpc[method](request, (error, reply) => (error ? reject(error) : resolve(JSON.parse(reply.json))));
    });
  }
}
