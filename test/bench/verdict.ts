/**
 * What a packet costs in the kernel, in ns by BPF_PROG_TEST_RUN: nothing but reading it (the floor), a full verdict without
 * and with a proof to find, and a packet of an established flow; with few and with a million proofs, always the same key
 * (hot) and a different one each time (random). All variants take turns in each round; a difference is the median of the
 * rounds' differences, so that the machine's mood falls out.
 */
import {
  addressStruct,
  authKeyStruct,
  authStruct,
  EGRESS,
  ipcacheStruct,
  NO_LEASE_END,
  POLICY_ALLOW,
  policyKeyStruct,
  policyStruct,
} from '../../src/datapath/layout.ts';
import { addressBytes } from '../../src/model/address.ts';
import { type Kernel, type Program, unavailable } from '../bpf/support/kernel.ts';
import { ethernet, ip, PROTO, udp } from '../bpf/support/packets.ts';
import { A, families, makeWorld } from '../bpf/support/world.ts';
import type { Bench, BenchResult } from './support.ts';

const AUTH_ENTRIES = [1, 1_000, 1_000_000] as const;
const ROUNDS = 31;
const HOT_REPEATS = 50_000;
const RANDOM_PACKETS = 2_000;
const REMOTES = 65_536;
const AUTH_HIT_LIMIT_NS = 60;
const ESTABLISHED_LIMIT_NS = 80;

const STATELESS = 0xffff_ffff_ffff_ffffn;
const NODE = 7;
const FIRST_IDENTITY = 100_000;
const PORT = 53;
/** The endpoint as an identity whose policy asks for no proof, and as one whose policy does. */
const WITHOUT_AUTH = { ...A, identity: A.identity + 1 };
const local = families[0]!.a;

type Variant = 'parse-only' | 'allow' | 'auth-hit' | 'established';
const VARIANTS: readonly Variant[] = ['parse-only', 'allow', 'auth-hit', 'established'];
/** ns per round. */
type Series = Record<Variant, number[]>;

const remoteAt = (i: number) => ip(`10.${1 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`);
/** Remote i of n proofs: spread over all of them, so that random remotes touch the whole table. */
const identityAt = (i: number, entries: number) => FIRST_IDENTITY + Math.floor((i % REMOTES) * (entries / REMOTES));

function populate(entries: number): Kernel {
  const kernel = makeWorld({ cs_auth: Math.max(entries, 16), cs_flows: REMOTES * 4 });
  kernel.putAll('cs_ipcache', addressStruct, ipcacheStruct, REMOTES, (i) => [
    { b: addressBytes(remoteAt(i)) },
    {
      incarnation: 1n,
      generation: 1n,
      lease_ns: NO_LEASE_END,
      identity: identityAt(i, entries),
      node: NODE,
      endpoint: 0,
      flags: 0,
    },
  ]);
  const distinct = Math.min(entries, REMOTES);
  for (const [identity, auth_type] of [
    [WITHOUT_AUTH.identity, 0],
    [A.identity, 1],
  ] as const) {
    kernel.putAll('cs_policy', policyKeyStruct, policyStruct, distinct, (i) => [
      {
        local: identity,
        remote: identityAt(entries < REMOTES ? Math.ceil((i * REMOTES) / entries) : i, entries),
        dport: PORT,
        proto: PROTO.udp,
        direction: EGRESS,
        slot: 0,
      },
      { verdict: POLICY_ALLOW, auth_type, rule: 1 },
    ]);
  }
  kernel.putAll('cs_auth', authKeyStruct, authStruct, entries, (i) => [
    { local: A.identity, remote: FIRST_IDENTITY + i, remote_node: NODE, auth_type: 1 },
    { expires_ns: NO_LEASE_END, epoch: 1 },
  ]);
  return kernel;
}

/** Brings the kernel into the state in which the program shows the variant. */
function prepare(kernel: Kernel, variant: Variant): Program {
  kernel.endpoint(variant === 'allow' ? WITHOUT_AUTH : A);
  kernel.config({ revision: variant === 'established' ? 1n : STATELESS });
  return variant === 'parse-only' ? 'parse_only' : 'from_workload';
}

const packetTo = (i: number) => ethernet(udp(local, remoteAt(i), 40_000, PORT));

/** Each variant must do what it says, or its figure says nothing. */
function check(kernel: Kernel): void {
  for (let i = 0; i < 64; i++) {
    const packet = packetTo(i * 1021);
    for (const variant of VARIANTS) {
      const verdict = kernel.run(prepare(kernel, variant), packet);
      if (verdict.action !== 'pass') throw new Error(`${variant} gave ${verdict.action} ${verdict.reasons.join()}`);
    }
  }
}

function series(): Series {
  return { 'parse-only': [], allow: [], 'auth-hit': [], established: [] };
}

/** Every other round backwards: what runs later finds warmer caches. */
const inTurn = (into: Series): readonly Variant[] =>
  into['parse-only'].length % 2 === 0 ? VARIANTS : VARIANTS.toReversed();

function measureHot(kernel: Kernel, into: Series): void {
  const packet = packetTo(0);
  for (const variant of inTurn(into)) {
    const program = prepare(kernel, variant);
    kernel.fire(program, packet, 1_000);
    into[variant].push(kernel.fire(program, packet, HOT_REPEATS));
  }
}

function measureRandom(kernel: Kernel, packets: readonly Buffer[], into: Series): void {
  for (const variant of inTurn(into)) {
    const program = prepare(kernel, variant);
    let sum = 0;
    for (let n = 0; n < RANDOM_PACKETS; n++) {
      sum += kernel.fire(program, packets[Math.floor(Math.random() * packets.length)]!);
    }
    into[variant].push(sum / RANDOM_PACKETS);
  }
}

function results(suffix: string, s: Series, targets: boolean): BenchResult[] {
  const value = (variant: Variant) => round(median(s[variant]));
  const over = (variant: Variant, base: Variant) => round(median(s[variant].map((ns, i) => ns - s[base][i]!)));
  const line = (variant: Variant, base: Variant, limit?: number): BenchResult => ({
    name: `verdict/${variant}${suffix}`,
    value: value(variant),
    unit: 'ns/packet',
    floor: { name: base, value: value(base) },
    ratio: round(value(variant) / value(base)),
    ...(limit === undefined || !targets
      ? { target: `${over(variant, base)} ns over ${base}` }
      : { target: `at most ${limit} ns over ${base}, now ${over(variant, base)}`, ok: over(variant, base) <= limit }),
  });
  return [
    { name: `verdict/parse-only${suffix}`, value: value('parse-only'), unit: 'ns/packet' },
    line('allow', 'parse-only'),
    line('auth-hit', 'allow', AUTH_HIT_LIMIT_NS),
    line('established', 'parse-only', ESTABLISHED_LIMIT_NS),
  ];
}

export const bench: Bench = {
  name: 'verdict',
  async run(emit, progress) {
    if (unavailable !== undefined) throw new Error(unavailable);
    const kernels = AUTH_ENTRIES.map((entries) => {
      progress(`verdict: loading the programs with ${entries.toLocaleString('en')} proofs`);
      const kernel = populate(entries);
      check(kernel);
      return { entries, kernel, hot: series(), random: series() };
    });
    try {
      for (let n = 1; n <= ROUNDS; n++) {
        for (const { kernel, hot } of kernels) measureHot(kernel, hot);
        if (n % 10 === 0) progress(`verdict: hot key, round ${n} of ${ROUNDS}`);
      }
      const packets = Array.from({ length: REMOTES }, (_, i) => packetTo(i));
      // The flows of all packets, so that each is established.
      for (const { kernel } of kernels) {
        prepare(kernel, 'established');
        for (const packet of packets) kernel.fire('from_workload', packet);
      }
      for (let n = 1; n <= ROUNDS; n++) {
        for (const { kernel, random } of kernels) measureRandom(kernel, packets, random);
        if (n % 10 === 0) progress(`verdict: random keys, round ${n} of ${ROUNDS}`);
      }
      for (const { entries, hot, random } of kernels) {
        for (const result of results(`/hot/${entries}`, hot, true)) emit(result);
        for (const result of results(`/random/${entries}`, random, false)) emit(result);
      }
    } finally {
      for (const { kernel } of kernels) kernel.close();
    }
  },
};

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1]!;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

if (import.meta.main) {
  await bench.run(
    (result) => process.stdout.write(`${JSON.stringify(result)}\n`),
    (line) => process.stderr.write(`${line}\n`),
  );
  process.exit(0);
}
