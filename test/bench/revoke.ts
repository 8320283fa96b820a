/**
 * From a revocation's arrival at an agent to the kernel's drop, with 100,000 auth entries that rest on some hundred certificates: the
 * server's message is decoded and taken by the agent's own state (10,000 signed identities in it), the entries that rest on the
 * revoked SVID are found and overwritten in the kernel's table, and a packet of one of the pairs, whose flow was established before,
 * is judged by the kernel's program. One SVID at a time, own ones and other nodes' in turns. The floor is one call of the kernel
 * that deletes as many entries, with their keys at hand.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type CertificateAuthority, openCertificateAuthority } from '../../ca/api.ts';
import { Signer } from '../../identity/signer.ts';
import { native } from '../../native/index.ts';
import { SyncResponse } from '../../proto/gen/countersign/server/v1/server.ts';
import { SyncedState } from '../../src/agent/server-client/synced-state.ts';
import { openAuditLog } from '../../src/audit/log.ts';
import { Backoff } from '../../src/auth/backoff.ts';
import { type OwnProof, OwnProofs } from '../../src/auth/own-proof.ts';
import { DEFAULT_AUTH_SETTINGS } from '../../src/auth/ports.ts';
import { Proofs } from '../../src/auth/proofs.ts';
import { writeProven } from '../../src/auth/proven-entries.ts';
import { type Proof, type ProofFacts, verifyChain } from '../../src/auth/verify-proof.ts';
import { ok, type Result } from '../../src/base/errors.ts';
import { createLogger } from '../../src/base/log.ts';
import { systemTimers } from '../../src/base/timers.ts';
import { createAuthTable } from '../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../src/datapath/config.ts';
import { authKeyStruct } from '../../src/datapath/layout.ts';
import { openMaps } from '../../src/datapath/maps.ts';
import type { AuthTable } from '../../src/model/datapath.ts';
import type { Svid } from '../../src/model/identity.ts';
import {
  type NodeId,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type SpiffeId,
  securityIdentity,
  type TrustDomain,
} from '../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey } from '../../src/pki/keys.ts';
import { type Kernel, unavailable } from '../bpf/support/kernel.ts';
import { ethernet, udp } from '../bpf/support/packets.ts';
import { A, EGRESS, families, makeWorld } from '../bpf/support/world.ts';
import type { Bench } from './support.ts';

const LOCALS = 250;
const REMOTES = 400;
const NODES = 20;
const IDENTITIES = 10_000;
const FIRST_IDENTITY = 256;
const TIMES = 200;
const WARM_UP = 10;
const LIMIT_MS = 10;
const PORT = 53;
const DOMAIN = 'example.org' as TrustDomain;
const SELF = nodeSpiffeId(DOMAIN, 'node-0' as NodeName);
const SPIFFE = 1;

const localAt = (i: number) => securityIdentity(FIRST_IDENTITY + i);
const remoteAt = (i: number) => securityIdentity(FIRST_IDENTITY + LOCALS + i);
const nodeOf = (remote: number): NodeId => nodeId(2 + (remote % NODES));
const nodeNameOf = (identity: number): NodeName =>
  `node-${identity < FIRST_IDENTITY + LOCALS ? 0 : 1 + ((identity - FIRST_IDENTITY - LOCALS) % NODES)}` as NodeName;
const pathOf = (identity: number): SpiffeId => spiffeId(`spiffe://${DOMAIN}/ns/shop/sa/w${identity}`);

export const bench: Bench = {
  name: 'revoke',
  async run(emit, progress) {
    if (unavailable !== undefined) throw new Error(`revoke ${unavailable}`);
    const directory = mkdtempSync(join(tmpdir(), 'countersign-bench-revoke-'));
    const world = await open(directory, progress);
    try {
      const times: Times[] = [];
      for (let i = -WARM_UP; i < TIMES; i++) {
        const taken = await world.revokeOne(i & 1 ? 'own' : 'remote', (i + WARM_UP) * 7);
        if (i >= 0) times.push(taken);
      }
      const told = (of: keyof Times, q: number) =>
        ms(
          quantile(
            times.map((t) => t[of]).sort((a, b) => a - b),
            q,
          ),
        );
      const both = (what: string, of: keyof Times) => `${what} ${told(of, 0.5)}, ${told(of, 0.99)}`;
      const parts = [
        both('known', 'taken'),
        both('dropped', 'dropped'),
        both('all told', 'done'),
        both('floor', 'floor'),
      ];
      progress(`revoke: ms, p50 and p99: ${parts.join('; ')}`);
      for (const [name, q] of [
        ['p50', 0.5],
        ['p99', 0.99],
      ] as const) {
        const value = told('dropped', q);
        const floor = told('floor', q);
        emit({
          name: `revocation to drop at ${LOCALS * REMOTES} auth entries, ${name} of ${TIMES}`,
          value,
          unit: `ms (CPU time ${told('cpu', q)})`,
          floor: { name: `deleting as many entries (${LOCALS} or ${REMOTES}) in one call`, value: floor },
          ratio: Math.round((value / floor) * 100) / 100,
          ...(name === 'p99' ? { target: `under ${LIMIT_MS} ms`, ok: value < LIMIT_MS } : {}),
        });
      }
    } finally {
      await world.close();
      rmSync(directory, { recursive: true });
    }
  },
};

/** ms since the message arrived; the floor by itself. */
interface Times {
  readonly taken: number;
  readonly dropped: number;
  /** CPU time of this process until then: what else the machine does is not in it. */
  readonly cpu: number;
  readonly done: number;
  readonly floor: number;
}

async function open(directory: string, progress: (line: string) => void) {
  const clock = { nowMs: () => Date.now(), bootNs: () => native().bootTimeNs() };
  const log = createLogger('bench', 'error');
  const audit = openAuditLog({ dir: join(directory, 'audit'), origin: `${DOMAIN}/node/node-0`, clock, log });
  const ca = await openCertificateAuthority({ directory: join(directory, 'ca'), trustDomain: DOMAIN, clock });
  const synced = new SyncedState(DOMAIN, SELF, ca.bundle().authorities, clock, log, audit);
  synced.apply(await snapshot(ca));
  progress(`revoke: ${synced.identities.rows().length} identities taken`);

  const kernel = makeWorld({});
  const maps = openMaps(kernel.object.maps);
  for (let i = 0; i < LOCALS; i++) kernel.policy({ local: localAt(i), direction: EGRESS }, { auth: SPIFFE });
  for (let i = 0; i < REMOTES; i++) kernel.knowIdentity(remoteAt(i));
  const table = createAuthTable(maps, new ConfigWriter(maps));
  const atDrop = new DropWatch(kernel);

  const svids = new Map<SecurityIdentity, Svid>();
  const facts: ProofFacts = {
    identities: synced.identities,
    bundles: { bundleOf: () => synced.bundle },
    revocations: synced.revocations,
    isVouched: () => true,
    nowMs: clock.nowMs,
    maxAgeMs: DEFAULT_AUTH_SETTINGS.maxAuthAgeMs,
  };
  const owns = new OwnProofs({ svidOf: (identity) => ok(svids.get(identity)!) }, synced.revocations, clock.nowMs);
  const proofs = new Proofs({
    tainted: () => new Set(),
    self: { name: 'node-0' as NodeName, spiffeId: SELF },
    table: atDrop.over(table),
    facts,
    owns,
    nodes: synced.nodes,
    channels: { list: () => [], get: () => undefined, open: () => Promise.reject(new Error('no channels here')) },
    hosts: () => true,
    hosted: () => [],
    vouchedBy: () => [],
    settled: () => undefined,
    ownAt: () => undefined,
    identityAt: () => undefined,
    policy: () => ({
      decide: () => ({ verdict: 'allow', authType: 'spiffe', rule: 1 }),
      authTypesOf: () => ['spiffe'],
    }),
    lastUse: undefined,
    backoff: new Backoff(DEFAULT_AUTH_SETTINGS, Math.random),
    settings: DEFAULT_AUTH_SETTINGS,
    random: Math.random,
    audit,
    clock,
    timers: systemTimers,
  });

  const issue = async (identity: SecurityIdentity): Promise<Svid> => {
    const privateKey = generateKey();
    const node = nodeSpiffeId(DOMAIN, nodeNameOf(identity));
    const csr = createCsr(privateKey);
    const issued = must(await ca.issueWorkloadSvid({ csr, spiffeId: pathOf(identity), node, requester: 'bench' }));
    return { spiffeId: pathOf(identity), chain: issued.chain, privateKey, notAfterMs: issued.notAfterMs };
  };
  const own: OwnProof[] = [];
  const remote: Proof[] = [];
  const proveOwn = async (i: number) => {
    svids.set(localAt(i), await issue(localAt(i)));
    own[i] = must(owns.of(localAt(i)));
  };
  const proveRemote = async (i: number) => {
    const identity = remoteAt(i);
    const nodeSpiffe = nodeSpiffeId(DOMAIN, nodeNameOf(identity));
    const claim = { identity, node: nodeOf(i), nodeSpiffeId: nodeSpiffe, epoch: table.epoch };
    remote[i] = must(verifyChain(facts, claim, (await issue(identity)).chain));
  };
  const { entries } = proofs.pairs;
  const write = (locals: readonly number[], remotes: readonly number[]) =>
    writeProven(
      entries,
      locals.flatMap((l) =>
        remotes.map((r) => ({
          local: localAt(l),
          remote: remoteAt(r),
          own: own[l]!,
          remoteProof: remote[r]!,
          initiated: true,
          correlation: `ch${r % NODES}/${l}`,
          peerUntilMs: undefined,
        })),
      ),
      { clock, settings: DEFAULT_AUTH_SETTINGS },
    );

  const allLocals = Array.from({ length: LOCALS }, (_, i) => i);
  const allRemotes = Array.from({ length: REMOTES }, (_, i) => i);
  await Promise.all([...allLocals.map(proveOwn), ...allRemotes.map(proveRemote)]);
  for (const l of allLocals) write([l], allRemotes);
  if (entries.size !== LOCALS * REMOTES || table.list().length !== LOCALS * REMOTES) {
    throw new Error(`${entries.size} entries, ${table.list().length} in the kernel's table`);
  }
  progress(`revoke: ${entries.size} auth entries on ${LOCALS + REMOTES} certificates`);

  const authFd = kernel.object.maps.cs_auth!.fd;
  let sequence = 0n;
  return {
    async revokeOne(whose: 'own' | 'remote', at: number): Promise<Times> {
      const [l, r] = [at % LOCALS, at % REMOTES];
      const { subject } = whose === 'own' ? own[l]! : { subject: { serial: remote[r]!.leaf.serial } };
      const message = SyncResponse.encode(
        SyncResponse.create({
          version: BigInt(synced.version) + 1n,
          revocations: [
            {
              sequence: ++sequence,
              what: { $case: 'serial', value: subject.serial },
              issuedUntil: BigInt(Math.floor(Date.now() / 1000)),
              reason: 'REVOKED_BY_ADMIN',
            },
          ],
        }),
      ).finish();
      const before = entries.size;
      atDrop.prepare(localAt(l), remoteAt(r), nodeOf(r));

      const cpuBefore = process.cpuUsage();
      const arrived = performance.now();
      const change = synced.apply(SyncResponse.decode(message));
      const taken = performance.now();
      if (change.revocations.length !== 1) throw new Error('the revocation is not news');
      proofs.revoked();
      const done = performance.now();

      const [locals, remotes] = whose === 'own' ? [[l], allRemotes] : [allLocals, [r]];
      const concerned = locals.length * remotes.length;
      if (entries.size !== before - concerned) throw new Error(`${before - entries.size} entries went`);
      if (whose === 'own') await proveOwn(l);
      else await proveRemote(r);
      const keys = Buffer.concat(write(locals, remotes).map(encodeKey));
      const floorFrom = performance.now();
      native().mapDeleteBatch(authFd, keys, concerned);
      const floor = performance.now() - floorFrom;
      write(locals, remotes);
      if (entries.size !== LOCALS * REMOTES) throw new Error('the entries are not back');
      // The audit log's turn, as between two messages.
      await new Promise((resolve) => setImmediate(resolve));
      const { user, system } = atDrop.cpu;
      const cpu = (user + system - cpuBefore.user - cpuBefore.system) / 1000;
      return { taken: taken - arrived, dropped: atDrop.seenAt - arrived, cpu, done: done - arrived, floor };
    },
    async close() {
      await audit.close();
      ca.close();
      kernel.close();
    },
  };
}

/** A packet of an established flow of one pair: it passes before, and the moment is taken when the kernel drops it. */
class DropWatch {
  readonly #kernel: Kernel;
  readonly #packet = ethernet(udp(families[0]!.a, families[0]!.r, 40_000, PORT));
  #watching = false;
  seenAt = Number.NaN;
  cpu = { user: Number.NaN, system: Number.NaN };

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  prepare(local: SecurityIdentity, remote: SecurityIdentity, node: NodeId): void {
    const kernel = this.#kernel;
    kernel.attach({ ...A, identity: local });
    kernel.address(families[0]!.a, { identity: local, endpoint: A.endpoint });
    kernel.address(families[0]!.r, { identity: remote, node });
    kernel.clear('cs_flows');
    for (let i = 0; i < 3; i++) {
      const { action, reasons } = kernel.run('from_workload', this.#packet);
      if (action !== 'pass') throw new Error(`before the revocation: ${action} ${reasons.join()}`);
    }
    this.#watching = true;
    this.seenAt = Number.NaN;
  }

  /** The table, with a look at the kernel's verdict as soon as a revocation's write returns. */
  over(table: AuthTable): AuthTable {
    const watched: AuthTable = Object.create(table, {
      refuse: {
        value: (...args: Parameters<AuthTable['refuse']>) => {
          table.refuse(...args);
          this.#look();
        },
      },
    });
    return watched;
  }

  #look(): void {
    if (!this.#watching) return;
    this.#watching = false;
    const fd = this.#kernel.object.programs.from_workload!;
    const { retval } = native().progTestRun(fd, { packet: this.#packet, mark: 0, ifindex: 1 });
    this.seenAt = performance.now();
    this.cpu = process.cpuUsage();
    if (retval !== TC_ACT_SHOT) throw new Error(`after the revocation: ${retval}`);
  }
}

const TC_ACT_SHOT = 2;

function encodeKey({ local, remote, remoteNode }: { local: number; remote: number; remoteNode: number }): Buffer {
  return Buffer.from(authKeyStruct.encode({ local, remote, remote_node: remoteNode, auth_type: SPIFFE }));
}

/** What the server sends first: rows signed with its own SVID. */
async function snapshot(ca: CertificateAuthority): Promise<SyncResponse> {
  const signer = await Signer.create(ca);
  const identities = Array.from({ length: IDENTITIES }, (_, i) => {
    const identity = FIRST_IDENTITY + i;
    const nodes = [nodeNameOf(identity)];
    const labels = { app: `a${i % 1000}`, tier: `t${i % 3}` };
    return signer.sign({
      identity: securityIdentity(identity),
      spiffeId: pathOf(identity),
      labels,
      nodes,
      ports: [],
      sequence: 1,
    });
  });
  const { authorities, sequence } = ca.bundle();
  return SyncResponse.create({
    version: 1n,
    snapshot: true,
    identities,
    nodes: Array.from({ length: NODES + 1 }, (_, i) => ({
      name: `node-${i}`,
      spiffeId: nodeSpiffeId(DOMAIN, `node-${i}` as NodeName),
      nodeId: i + 1,
      incarnation: 1n,
      peerAddresses: [],
      prefixes: [],
    })),
    bundle: { certificates: authorities, sequence },
    signerChain: [...signer.svid.chain],
  });
}

function must<T>(result: Result<T, string>): T {
  if (!result.ok) throw new Error(`revoke: ${result.error}`);
  return result.value;
}

const quantile = (sorted: readonly number[], q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!;
const ms = (value: number) => Math.round(value * 1000) / 1000;
