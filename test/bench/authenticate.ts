/**
 * Mutual authentications per second and core on an open peer channel: for each, two requests, two authenticators made and
 * two verified in all seven steps, and the auth maps of both nodes written. Cold: SVIDs never seen before. Warm: as
 * on every renewal. Beside the four signature operations that no protocol can do without, and beside what a design without
 * a channel does: a full mutual TLS 1.3 handshake for each pair. All per second of CPU time, so that a busy machine does
 * not decide, and in turns within one run. And what the first contact of two nodes costs with more and more identities.
 */
import { createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, createSecureContext, createServer, type TLSSocket } from 'node:tls';
import { type CertificateAuthority, openCertificateAuthority } from '../../ca/api.ts';
import { native } from '../../native/index.ts';
import { Revocations } from '../../src/agent/server-client/tables.ts';
import { createAuthenticator } from '../../src/auth/rfc9261/authenticator.ts';
import { deriveAuthenticatorKeys } from '../../src/auth/rfc9261/keys.ts';
import { RequestLedger } from '../../src/auth/rfc9261/ledger.ts';
import { type ProofFacts, verifyProof } from '../../src/auth/verify-proof.ts';
import { VouchBook } from '../../src/auth/vouch-book.ts';
import type { Clock } from '../../src/base/clock.ts';
import { ok, type Result } from '../../src/base/errors.ts';
import { DEFAULT_GROUPS, tlsCredentials, tlsOptions } from '../../src/channel/tls.ts';
import { createAuthTable } from '../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../src/datapath/config.ts';
import { openMaps } from '../../src/datapath/maps.ts';
import type { AuthTable } from '../../src/model/datapath.ts';
import type { IdentityRow, Svid, TrustBundle } from '../../src/model/identity.ts';
import {
  type IpAddress,
  nodeId,
  type SecurityIdentity,
  securityIdentity,
  type TrustDomain,
} from '../../src/model/ids.ts';
import { spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey } from '../../src/pki/keys.ts';
import { encodePem } from '../../src/pki/pem.ts';
import { manyIdentities } from './node-pair.ts';
import type { Bench } from './support.ts';

const ROUNDS = 7;
/** Long enough that what another measurement left to the garbage collector does not count. */
const PAIRS_PER_ROUND = 1500;
const PAIRS_PER_TURN = 100;
const HANDSHAKES_PER_ROUND = 200;
const TRUST_DOMAIN = 'example.org' as TrustDomain;
const OBJECT = join(import.meta.dirname, '../../build/bpf/datapath.bpf.o');
const NODE = spiffeId(`spiffe://${TRUST_DOMAIN}/node/a`);
const PEER = nodeId(7);
const FRONTEND = securityIdentity(59_000);
const BACKEND = securityIdentity(60_000);
const COLD_OVER_TLS = 3;
const WARM_OVER_TLS = 5;
const WARM_OF_FLOOR = 0.6;

export const bench: Bench = {
  name: 'authenticate',
  async run(emit, progress) {
    const directory = await mkdtemp(join(tmpdir(), 'countersign-bench-authenticate-'));
    const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
    const ca = await openCertificateAuthority({ directory, trustDomain: TRUST_DOMAIN, clock });
    const bundle: TrustBundle = { trustDomain: TRUST_DOMAIN, authorities: ca.bundle().authorities };
    const maps = openTables(progress);
    const [known] = await issuePairs(ca, 1);
    const tls = await openTls(known!, bundle);
    const pair = await tls.handshake();
    try {
      const side = (socket: TLSSocket, role: 'client' | 'server', table: AuthTable | undefined): Side => {
        const keys = deriveAuthenticatorKeys({
          role,
          hash: 'sha384',
          exportKey: (label, context, length) => socket.exportKeyingMaterial(length, label, Buffer.from(context)),
        });
        return { keys, ledger: new RequestLedger(keys, clock), table };
      };
      const facts = whatIsKnown(bundle, clock);
      const client = side(pair.client, 'client', maps?.[0]);
      const server = side(pair.server, 'server', maps?.[1]);
      const authenticate = (pairs: readonly Pair[]) => {
        for (const both of pairs) mutual(client, server, both, facts);
      };
      const floorKeys = [known!.client, known!.server].map(({ privateKey }) => ({
        privateKey,
        publicKey: createPublicKey(privateKey),
      }));
      const warm: Pair[] = Array.from({ length: PAIRS_PER_ROUND }, (_, i) => ({ ...known!, number: i }));
      progress('authenticate: warming up');
      authenticate(await issuePairs(ca, PAIRS_PER_ROUND));
      for (let i = 0; i < 3; i++) authenticate(warm);

      const rounds: Round[] = [];
      for (let round = 1; round <= ROUNDS; round++) {
        const floor = new Stopwatch();
        const warmly = new Stopwatch();
        // In short turns: whatever else this machine does meets both alike.
        for (let at = 0; at < PAIRS_PER_ROUND; at += PAIRS_PER_TURN) {
          await floor.time(PAIRS_PER_TURN, () => floorOperations(floorKeys, PAIRS_PER_TURN));
          await warmly.time(PAIRS_PER_TURN, () => authenticate(warm.slice(at, at + PAIRS_PER_TURN)));
        }
        const tlsTime = new Stopwatch();
        await tlsTime.time(HANDSHAKES_PER_ROUND, () => tls.handshakes(HANDSHAKES_PER_ROUND));
        const fresh = await issuePairs(ca, PAIRS_PER_ROUND);
        const cold = new Stopwatch();
        await cold.time(PAIRS_PER_ROUND, () => authenticate(fresh));
        const measured = { floor: floor.rate, warm: warmly.rate, tls: tlsTime.rate, cold: cold.rate };
        rounds.push(measured);
        const text = Object.entries(measured).map(([name, value]) => `${name} ${Math.round(value)}/s`);
        progress(`authenticate: round ${round} of ${ROUNDS}: ${text.join(', ')}`);
      }
      report(rounds, maps !== undefined, emit);
      await manyIdentities(emit, progress);
    } finally {
      pair.client.destroy();
      pair.server.destroy();
      tls.close();
      ca.close();
      await rm(directory, { recursive: true });
    }
  },
};

interface Pair {
  readonly client: Svid;
  readonly server: Svid;
  readonly number: number;
}

interface Side {
  readonly keys: ReturnType<typeof deriveAuthenticatorKeys>;
  readonly ledger: RequestLedger;
  /** undefined: no BPF here. */
  readonly table: AuthTable | undefined;
}

interface Round {
  readonly floor: number;
  readonly warm: number;
  readonly tls: number;
  readonly cold: number;
}

/** One exchange as on the wire: both ask, the client proves first, the server writes before it proves, the client writes last. */
function mutual(client: Side, server: Side, pair: Pair, facts: ProofFacts): void {
  const toServer = must(client.ledger.issue());
  must(server.ledger.admit(toServer));
  const toClient = must(server.ledger.issue());
  must(client.ledger.admit(toClient));
  prove(client, server, toClient, pair.client, FRONTEND, pair.number, facts);
  prove(server, client, toServer, pair.server, BACKEND, pair.number, facts);
}

function prove(
  prover: Side,
  verifier: Side,
  request: Buffer,
  svid: Svid,
  identity: SecurityIdentity,
  number: number,
  facts: ProofFacts,
): void {
  const authenticator = must(createAuthenticator(prover.keys, request, svid));
  const outcome = must(verifier.ledger.answer(request, authenticator));
  if (outcome.kind !== 'proved') throw new Error('an authenticator was refused');
  const claim = { identity, node: PEER, nodeSpiffeId: NODE, epoch: verifier.table?.epoch ?? 1 };
  const { validUntilMs, epoch } = must(verifyProof(facts, claim, ok(outcome)));
  verifier.table?.put({
    local: securityIdentity(256 + number),
    remote: securityIdentity(60_000),
    remoteNode: PEER,
    authType: 'spiffe',
    expiresAtNs: BigInt(validUntilMs) * 1_000_000n,
    epoch,
  });
}

/** Both identities are in the table and vouched for by the node that both SVIDs are bound to. */
function whatIsKnown(bundle: TrustBundle, clock: Clock): ProofFacts {
  const rows = new Map<SecurityIdentity, IdentityRow>();
  const book = new VouchBook();
  for (const [i, [identity, path]] of [[FRONTEND, 'frontend'] as const, [BACKEND, 'backend'] as const].entries()) {
    const id = spiffeId(`spiffe://${TRUST_DOMAIN}/ns/shop/sa/${path}`);
    rows.set(identity, { identity, spiffeId: id, labels: {}, nodes: [NODE] });
    const version = { incarnation: 1n, generation: 1n };
    const leaseEndNs = clock.bootNs() + 3_600_000_000_000n;
    const address = `10.0.0.${i}` as IpAddress;
    book.set({ address, node: PEER, identity, spiffeId: id, ...version, leaseEndNs });
  }
  return {
    identities: {
      byIdentity: (identity) => rows.get(identity),
      bySpiffeId: () => undefined,
      rows: () => [...rows.values()],
    },
    bundles: { bundleOf: () => bundle },
    revocations: new Revocations(),
    isVouched: (node, identity) => book.isVouched(node, identity, clock.bootNs()),
    nowMs: () => clock.nowMs(),
    maxAgeMs: 3_600_000,
  };
}

interface SigningKeys {
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
}

/** Two signatures and two verifications of what a CertificateVerify covers under SHA-384. */
function floorOperations(keys: readonly SigningKeys[], times: number): void {
  for (let i = 0; i < times; i++) {
    for (const { privateKey, publicKey } of keys) {
      const signature = sign('sha256', SIGNED_CONTENT, privateKey);
      if (!verify('sha256', SIGNED_CONTENT, publicKey, signature)) throw new Error('a signature does not verify');
    }
  }
}

const SIGNED_CONTENT = Buffer.alloc(64 + 23 + 48, 0x20);

/** Full handshakes over the loopback device, the same group, ciphers and certificates, both sides verified by OpenSSL. */
async function openTls({ client, server }: Pair, bundle: TrustBundle) {
  const verified = {
    ...tlsOptions({ groups: DEFAULT_GROUPS }),
    ca: bundle.authorities.map((der) => encodePem('CERTIFICATE', der)),
    rejectUnauthorized: true,
  };
  const listener = createServer({ ...tlsCredentials(server), ...verified, requestCert: true });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('not listening');
  const secureContext = createSecureContext({ ...tlsCredentials(client), ...verified });
  const handshake = async () => {
    const accepted = once(listener, 'secureConnection');
    const socket = connect({
      ...verified,
      host: '127.0.0.1',
      port: address.port,
      secureContext,
      // SPIFFE names no hosts.
      checkServerIdentity: () => undefined,
    });
    await once(socket, 'secureConnect');
    const [peer] = (await accepted) as [TLSSocket];
    return { client: socket, server: peer };
  };
  return {
    handshake,
    handshakes: async (times: number) => {
      for (let i = 0; i < times; i++) {
        const pair = await handshake();
        pair.client.destroy();
        pair.server.destroy();
      }
    },
    close: () => listener.close(),
  };
}

async function issuePairs(ca: CertificateAuthority, count: number): Promise<Pair[]> {
  const issue = async (path: string): Promise<Svid> => {
    const privateKey = generateKey();
    const id = spiffeId(`spiffe://${TRUST_DOMAIN}/${path}`);
    const issued = must(
      await ca.issueWorkloadSvid({ csr: createCsr(privateKey), spiffeId: id, node: NODE, requester: NODE }),
    );
    return { spiffeId: id, chain: issued.chain, privateKey, notAfterMs: issued.notAfterMs };
  };
  return Promise.all(
    Array.from({ length: count }, async (_, number) => ({
      client: await issue('ns/shop/sa/frontend'),
      server: await issue('ns/shop/sa/backend'),
      number,
    })),
  );
}

/** The maps of two nodes, as the kernel programs have them. */
function openTables(progress: (line: string) => void): [AuthTable, AuthTable] | undefined {
  const open = () => {
    const maps = openMaps(native().loadObject({ path: OBJECT }).maps);
    return createAuthTable(maps, new ConfigWriter(maps));
  };
  try {
    return [open(), open()];
  } catch (error) {
    progress(`authenticate: without the kernel's maps, which need root, BPF and ./dev build (${String(error)})`);
    return undefined;
  }
}

/** CPU time of this process, in user and kernel, summed over turns. */
class Stopwatch {
  #times = 0;
  #microseconds = 0;

  async time(times: number, work: () => void | Promise<void>): Promise<void> {
    const before = process.cpuUsage();
    const pending = work();
    if (pending !== undefined) await pending;
    const { user, system } = process.cpuUsage(before);
    this.#times += times;
    this.#microseconds += user + system;
  }

  /** Per second. */
  get rate(): number {
    return (this.#times / this.#microseconds) * 1e6;
  }
}

function report(rounds: readonly Round[], withMaps: boolean, emit: Parameters<Bench['run']>[0]): void {
  const value = (name: keyof Round) => Math.round(median(rounds.map((round) => round[name])));
  const ratio = (over: keyof Round, under: keyof Round) => median(rounds.map((round) => round[over] / round[under]));
  const unit = withMaps ? 'authentications/s' : 'authentications/s, no maps written';
  const floor = { name: '2 signs + 2 verifies, P-256', value: value('floor') };
  const rival = { name: 'full mutual TLS 1.3 handshakes', value: value('tls') };
  const line = (name: string, of: 'warm' | 'cold', under: 'tls' | 'floor', least: number) => {
    const measured = ratio(of, under);
    emit({
      name,
      value: value(of),
      unit,
      floor,
      rival,
      ratio: Math.round(measured * 1000) / 1000,
      target: `at least ${least} times the ${under === 'tls' ? 'rival' : 'floor'}`,
      // Without the maps the job is not done, so its speed meets no target.
      ok: withMaps && measured >= least,
    });
  };
  line('authenticate cold', 'cold', 'tls', COLD_OVER_TLS);
  line('authenticate warm', 'warm', 'tls', WARM_OVER_TLS);
  line('authenticate warm of floor', 'warm', 'floor', WARM_OF_FLOOR);
}

function must<T>(result: Result<T, string>): T {
  if (!result.ok) throw new Error(`authenticate: ${result.error}`);
  return result.value;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}
