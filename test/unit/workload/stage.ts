/** What the Workload API tests share: a feed whose entries they set, a served socket, workloads as processes of any uid. */
import { type ChildProcess, spawn } from 'node:child_process';
import { type KeyObject, sign } from 'node:crypto';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type ChannelCredentials, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { err, ok, type Result } from '../../../src/base/errors.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { RegistrationEntry } from '../../../src/model/entry.ts';
import type { Svid, TrustBundle } from '../../../src/model/identity.ts';
import { securityIdentity, type TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { jwtFrom, jwtSvidSigningInput } from '../../../src/pki/jwt.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import type { AttestationOptions } from '../../../src/workload/attest.ts';
import type { IdentityFeed, IssuedJwtSvid } from '../../../src/workload/feed.ts';
import { startWorkloadApi, type WorkloadApi, type WorkloadApiLimits } from '../../../src/workload/workload-api.ts';

export const NOW_MS = 1_800_000_000_000;
export const ownUid = process.getuid!();
export const ownGid = process.getgid!();
export const isRoot = ownUid === 0;
export const jwtKey = generateKey();
export const bundle = bundleOf('example.org', 'root', jwtKey);

export function bundleOf(trustDomain: string, root: string, key: KeyObject): TrustBundle {
  const jwtAuthorities = [{ keyId: `${root}-key`, publicKey: publicKeyDer(key) }];
  return { trustDomain: trustDomain as TrustDomain, authorities: [element(root)], jwtAuthorities };
}

/** Signed by `key`, which its bundle knows as `kid`. */
export function jwtSvid(key: KeyObject, id: string, audience: readonly string[], kid = 'root-key'): string {
  const issuedAt = NOW_MS / 1000;
  const input = jwtSvidSigningInput({
    alg: 'ES256',
    kid,
    spiffeId: spiffeId(id),
    audience,
    issuedAt,
    expiresAt: issuedAt + 300,
  });
  return jwtFrom(input, sign('sha256', Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' }));
}

/** A DER element that stands for a certificate: this boundary only carries them. */
export function element(text: string): Buffer {
  return der(TAG.sequence, Buffer.from(text));
}

export function entry(name: string, ...selectors: string[]): RegistrationEntry {
  return {
    id: name,
    spiffeId: spiffeId(`spiffe://example.org/${name}`),
    parentId: spiffeId('spiffe://example.org/node/a'),
    selectors,
    hint: '',
    identity: securityIdentity(256),
    labels: {},
    ttlSeconds: 0,
    jwtTtlSeconds: 0,
    dnsNames: [],
    federatesWith: [],
  };
}

export function svid(name: string, serial = 1, notAfterMs = NOW_MS + 60_000): Svid {
  return {
    spiffeId: spiffeId(`spiffe://example.org/${name}`),
    chain: [element(`${name} ${serial}`), element('intermediate')],
    privateKey: generateKey(),
    notAfterMs,
  };
}

/** The agent's side, set by the test. */
export class TestFeed implements IdentityFeed {
  starting = false;
  entries: RegistrationEntry[] = [];
  svids = new Map<string, Svid>();
  bundles: TrustBundle[] = [bundle];
  crls: Buffer[] = [];
  listeners = new Set<() => void>();

  /** How often the snapshot's SVIDs were looked at. */
  asked = 0;

  snapshot() {
    if (this.starting) return undefined;
    const { entries, bundles, crls } = this;
    const svidOf = (id: string) => {
      this.asked++;
      return this.svids.get(id);
    };
    return { entries, svidOf, bundles, crls };
  }
  /** Reasons by entry, for the entries that get no JWT-SVID. */
  jwtRefusals = new Map<string, ReasonCode>();
  async issueJwt(entryId: string, audience: readonly string[]): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    const refusal = this.jwtRefusals.get(entryId);
    if (refusal !== undefined) return err(refusal);
    const { spiffeId: id } = this.entries.find((e) => e.id === entryId)!;
    return ok({ token: jwtSvid(jwtKey, id, audience), expiresAtMs: NOW_MS + 300_000 });
  }
  subscribe(changed: () => void) {
    this.listeners.add(changed);
    return () => this.listeners.delete(changed);
  }
  changed() {
    for (const listener of this.listeners) listener();
  }
  add(name: string, ...selectors: string[]) {
    this.entries = [...this.entries, entry(name, ...selectors)];
    this.svids.set(name, svid(name));
    this.changed();
  }
}

export interface Stage {
  readonly directory: string;
  readonly socketPath: string;
  readonly feed: TestFeed;
  readonly api: WorkloadApi;
  readonly events: AuditEvent[];
  readonly clock: { ms: number; ns: bigint };
  workload(uid: number): Workload;
  clear(): Promise<void>;
}

export async function openStage(limits?: Partial<WorkloadApiLimits>, attestation?: AttestationOptions): Promise<Stage> {
  const directory = mkdtempSync(join(tmpdir(), 'cs-workload-'));
  chmodSync(directory, 0o755);
  const socketPath = join(directory, 'run/workload.sock');
  const feed = new TestFeed();
  const events: AuditEvent[] = [];
  const time = { ms: NOW_MS, ns: 1n };
  const workloads: Workload[] = [];
  const api = await startWorkloadApi({
    socketPath,
    feed,
    audit: { emit: (event) => events.push(event) },
    clock: { nowMs: () => time.ms, bootNs: () => time.ns },
    log: createLogger('test', 'silent'),
    limits: { issueWaitMs: 20, ...limits },
    ...(attestation === undefined ? {} : { attestation }),
  });
  return {
    directory,
    socketPath,
    feed,
    api,
    events,
    clock: time,
    workload(uid) {
      const workload = new Workload(socketPath, uid);
      workloads.push(workload);
      return workload;
    },
    async clear() {
      await Promise.all(workloads.map((workload) => workload.kill()));
      await api.close();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** A process of another uid that watches its SVIDs. */
export class Workload {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #exited: Promise<unknown>;

  constructor(socketPath: string, uid: number) {
    const script = join(import.meta.dirname, 'watch-svids.ts');
    const identity = isRoot ? { uid, gid: uid } : {};
    this.#child = spawn(process.execPath, [script, socketPath], {
      ...identity,
      stdio: ['pipe', 'pipe', 'inherit'],
      cwd: '/',
    });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
    this.#exited = new Promise((resolve) => this.#child.once('exit', resolve));
  }

  get pid(): number {
    return this.#child.pid!;
  }

  async next(): Promise<{ ids?: string[]; refused?: string; message?: string }> {
    const line = await this.#lines.next();
    if (line.done) throw new Error('the workload ended');
    return JSON.parse(line.value);
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exited;
  }
}

/** Until the condition holds: looked at after each turn of the event loop, given up by the test's own time-out. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** The security header (SPIFFE Workload Endpoint, section 3). */
export function security(): Metadata {
  const metadata = new Metadata();
  metadata.set('workload.spiffe.io', 'true');
  return metadata;
}

/** A client of any service on the stage's socket, on a connection of its own. */
export function clientOf<C>(
  Client: new (address: string, credentials: ChannelCredentials, options: object) => C,
  { socketPath }: { socketPath: string },
): C {
  return new Client(`unix:${socketPath}`, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
}

/** A unary call's answer, or the error that it ended with. */
export function answerOf<R>(call: (done: (error: ServiceError | null, response: R) => void) => unknown): Promise<R> {
  return new Promise((resolve, reject) => {
    call((error, response) => (error === null ? resolve(response) : reject(error)));
  });
}
