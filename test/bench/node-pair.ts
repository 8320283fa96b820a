/**
 * What the first contact of two nodes costs with n identities on each side and every pair required: both nodes' managers, real
 * certificates and authenticators, frames and tables in memory. Signatures made and verified are counted where node:crypto makes
 * and verifies them.
 */
import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { type SimNode, type Workload, World } from '../unit/auth/world.ts';
import type { Bench } from './support.ts';

const SIZES = [4, 8, 16, 32];
const TIMES = 5;
/** Twice as many identities, and four times as many pairs, may cost so many times as much. */
const GROWTH_LIMIT = 2.5;

interface Contact {
  readonly signatures: number;
  readonly verifications: number;
  /** ms of CPU time, both nodes together. */
  readonly cpu: number;
  readonly bytes: number;
}

export async function manyIdentities(
  emit: Parameters<Bench['run']>[0],
  progress: (line: string) => void,
): Promise<void> {
  const counted = countSignatures();
  try {
    await contact(SIZES[0]!, counted);
    let before: Contact | undefined;
    for (const n of SIZES) {
      const times: Contact[] = [];
      for (let i = 0; i < TIMES; i++) times.push(await contact(n, counted));
      // The least: garbage and neighbours only add.
      const cpu = Math.min(...times.map((time) => time.cpu));
      const now = { ...times[0]!, cpu };
      progress(
        `authenticate: ${n} identities on each side, ${n * n} pairs: ${now.signatures} signatures made, ${now.verifications} verified, ${now.bytes} octets of frames, ${cpu.toFixed(1)} ms`,
      );
      const growth =
        before === undefined ? undefined : Math.max(operations(now) / operations(before), cpu / before.cpu);
      emit({
        name: `first contact of two nodes, ${n} identities on each side, all ${n * n} pairs proven`,
        value: operations(now),
        unit: `signatures made and verified (${cpu.toFixed(1)} ms of CPU time, ${now.bytes} octets)`,
        floor: { name: 'one made and one verified for each identity', value: 4 * n },
        ratio: Math.round((operations(now) / (4 * n)) * 100) / 100,
        ...(growth === undefined
          ? {}
          : {
              target: `at most ${GROWTH_LIMIT} times that of half as many, in operations and in time`,
              ok: growth <= GROWTH_LIMIT,
            }),
      });
      before = now;
    }
  } finally {
    counted.end();
  }
}

const operations = ({ signatures, verifications }: Contact): number => signatures + verifications;

async function contact(n: number, counted: ReturnType<typeof countSignatures>): Promise<Contact> {
  const world = await World.create();
  try {
    world.settings = { preAuthentication: { enabled: true, rate: 10_000 } };
    for (const node of world.nodes) node.start();
    const [a, b] = [world.node('a'), world.node('b')];
    const near = await workloads(world, a, '10.0.1', n, 300);
    const far = await workloads(world, b, '10.0.2', n, 400);
    for (const one of near) for (const other of far) world.require(one, other);
    await world.pass(1_000);
    const [made, verified] = [counted.made, counted.verified];
    const before = process.cpuUsage();
    world.connect(a, b);
    await world.pass(2_000);
    const { user, system } = process.cpuUsage(before);
    if (a.kernelAuth.size !== n * n || b.kernelAuth.size !== n * n) {
      throw new Error(`${a.kernelAuth.size} and ${b.kernelAuth.size} pairs of ${n * n} are proven`);
    }
    const frames = world.frames.filter(
      ({ type }) => type >= FrameType.FRAME_TYPE_PROVE_REQUEST && type <= FrameType.FRAME_TYPE_PAIRS_RESULT,
    );
    return {
      signatures: counted.made - made,
      verifications: counted.verified - verified,
      cpu: (user + system) / 1000,
      bytes: frames.reduce((sum, { body }) => sum + body.length, 0),
    };
  } finally {
    world.close();
  }
}

async function workloads(world: World, node: SimNode, net: string, n: number, first: number): Promise<Workload[]> {
  const made: Workload[] = [];
  for (let i = 0; i < n; i++) made.push(await world.workload(`w${first + i}`, node, `${net}.${10 + i}`, first + i));
  return made;
}

/** The functions that modules imported by name are replaced for all of them. */
function countSignatures() {
  const { sign, verify, X509Certificate } = crypto;
  const { verify: verifyCertificate } = X509Certificate.prototype;
  const counted = {
    made: 0,
    verified: 0,
    end() {
      Object.assign(crypto, { sign, verify });
      X509Certificate.prototype.verify = verifyCertificate;
      syncBuiltinESMExports();
    },
  };
  crypto.sign = ((...args: Parameters<typeof sign>) => {
    counted.made += 1;
    return sign(...args);
  }) as typeof sign;
  crypto.verify = ((...args: Parameters<typeof verify>) => {
    counted.verified += 1;
    return verify(...args);
  }) as typeof verify;
  X509Certificate.prototype.verify = function (...args) {
    counted.verified += 1;
    return verifyCertificate.apply(this, args);
  };
  syncBuiltinESMExports();
  return counted;
}
