/**
 * What a packet costs in the kernel, in ns by BPF_PROG_TEST_RUN: nothing but running a program, nothing but reading the packet
 * (the floor), a full verdict without and with a proof to find, and a packet of an established flow. With few and with
 * many rules, identities and proofs; always the same key (hot), and for the proofs a different one each time (random).
 * All variants of all worlds take turns in each round; a difference or ratio is the median of the rounds' own, so that the
 * machine's mood falls out.
 */
import {
  addressStruct,
  authKeyStruct,
  authStruct,
  CLASS_ASKS,
  classKeyStruct,
  classStruct,
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

const ROUNDS = 31;
const HOT_REPEATS = 50_000;
const RANDOM_PACKETS = 2_000;
const REMOTES = 65_536;
const AUTH_HIT_LIMIT_NS = 60;
const ESTABLISHED_LIMIT_NS = 80;
const RANDOM_AUTH_LIMIT_NS = 500;
const GROWTH_LIMIT = 1.15;

const STATELESS = 0xffff_ffff_ffff_ffffn;
const NODE = 7;
const FIRST_IDENTITY = 100_000;
const PORT = 53;
const LOCAL_CLASS = 1;
const FIRST_CLASS = 2;
const EVERY_LENGTH = 0x1ffff;
/** The endpoint as an identity whose policy asks for no proof, and as one whose policy does. */
const WITHOUT_AUTH = { ...A, identity: A.identity + 1 };
const local = families[0]!.a;

type Variant = 'run' | 'parse-only' | 'allow' | 'auth-hit' | 'established';
const VARIANTS: readonly Variant[] = ['run', 'parse-only', 'allow', 'auth-hit', 'established'];
/** ns per round. */
type Series = Record<Variant, number[]>;

interface Shape {
  readonly name: string;
  /** Addresses of other nodes' workloads, over which the identities are spread. */
  readonly remotes: number;
  readonly identities: number;
  /** Identities that no rule tells apart share one: 1 to `identities`. */
  readonly classes: number;
  /** Entries for the endpoint: that many peers and ports. */
  readonly rules: number;
  readonly proofs: number;
  /** Every length of a port prefix is in use, so that each is looked for; the one entry that is found comes last. */
  readonly everyLength?: boolean;
}

const few: Shape = { name: 'one', remotes: 1, identities: 1, classes: 1, rules: 1, proofs: 1 };
const worlds: readonly Shape[] = [
  few,
  { ...few, name: 'rules/10000', rules: 10_000 },
  {
    ...few,
    name: 'identities/10000',
    remotes: 10_000,
    identities: 10_000,
    classes: 10_000,
    rules: 10_000,
    proofs: 10_000,
  },
  { ...few, name: 'every-prefix-length', everyLength: true },
  ...[1, 1_000, 1_000_000].map((proofs) => ({
    ...few,
    name: `proofs/${proofs}`,
    remotes: REMOTES,
    identities: Math.min(proofs, REMOTES),
    proofs,
  })),
];

const remoteAt = (i: number) => ip(`10.${1 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`);
/** Spread over all proofs, so that random remotes touch the whole table. */
const identityAt = (shape: Shape, i: number) =>
  FIRST_IDENTITY + Math.floor((i % shape.identities) * Math.max(1, shape.proofs / shape.identities));
/** Entry i: the first is the one that all packets meet; the others name other ports, then other peers. */
const ruleAt = (shape: Shape, i: number) => ({
  remote: shape.classes > 1 ? FIRST_CLASS + (i % shape.classes) : FIRST_CLASS + Math.floor(i / 1000),
  dport: shape.classes > 1 ? PORT : PORT + (i % 1000),
});

function populate(shape: Shape): Kernel {
  const kernel = makeWorld({
    // Twice the room that is needed: half full, a hash table's chains are short.
    cs_auth: Math.max(shape.proofs * 2, 16),
    cs_flows: Math.max(shape.remotes * 4, 4096),
    cs_classes: 262_144,
  });
  kernel.putAll('cs_ipcache', addressStruct, ipcacheStruct, shape.remotes, (i) => [
    { b: addressBytes(remoteAt(i)) },
    {
      incarnation: 1n,
      generation: 1n,
      lease_ns: NO_LEASE_END,
      identity: identityAt(shape, i),
      node: NODE,
      endpoint: 0,
      flags: 0,
    },
  ]);
  kernel.putAll('cs_classes', classKeyStruct, classStruct, shape.identities, (i) => [
    { identity: identityAt(shape, i), slot: 0 },
    { local: [0, 0] as const, remote: [FIRST_CLASS + (i % shape.classes), 0] as const, port_bits: [0, 0] as const },
  ]);
  const lengths = shape.everyLength === true ? EVERY_LENGTH : 0x10000;
  for (const [n, { identity }] of [WITHOUT_AUTH, A].entries()) {
    const bits = n === 0 ? lengths : (lengths | CLASS_ASKS) >>> 0;
    kernel.classRow(identity, { local: [LOCAL_CLASS + n * 1_000_000, 0], remote: [0, 0], portBits: [bits, 0] });
    kernel.putAll('cs_policy', policyKeyStruct, policyStruct, shape.rules, (i) => [
      {
        local: LOCAL_CLASS + n * 1_000_000,
        ...(shape.everyLength === true ? { remote: 0, dport: 0 } : ruleAt(shape, i)),
        proto: shape.everyLength === true ? 0 : PROTO.udp,
        port_bits: shape.everyLength === true ? 0 : 16,
        direction: EGRESS,
        slot: 0,
      },
      { verdict: POLICY_ALLOW, auth_type: n, observed_verdict: 0, observed_auth_type: 0, rule: 1, observed_rule: 0 },
    ]);
  }
  kernel.putAll('cs_auth', authKeyStruct, authStruct, shape.proofs, (i) => [
    { local: A.identity, remote: FIRST_IDENTITY + i, remote_node: NODE, auth_type: 1 },
    { expires_ns: NO_LEASE_END, epoch: 1, flags: 0 },
  ]);
  return kernel;
}

/** Brings the kernel into the state in which the program shows the variant. */
function prepare(kernel: Kernel, variant: Variant): Program {
  kernel.attach(variant === 'allow' ? WITHOUT_AUTH : A);
  kernel.config({ revision: variant === 'established' ? 1n : STATELESS });
  if (variant === 'run') return 'from_tunnel'; // six instructions: what running anything costs
  return variant === 'parse-only' ? 'parse_only' : 'from_workload';
}

const packetTo = (i: number) => ethernet(udp(local, remoteAt(i), 40_000, PORT));

/** Each variant must do what it says, or its figure says nothing. */
function check(kernel: Kernel, shape: Shape): void {
  for (let i = 0; i < Math.min(64, shape.remotes); i++) {
    const packet = packetTo((i * 1021) % shape.remotes);
    for (const variant of VARIANTS) {
      const verdict = kernel.run(prepare(kernel, variant), packet);
      if (verdict.action !== 'pass') {
        throw new Error(`${shape.name}: ${variant} gave ${verdict.action} ${verdict.reasons.join()}`);
      }
    }
  }
}

function series(): Series {
  return { run: [], 'parse-only': [], allow: [], 'auth-hit': [], established: [] };
}

/** Every other round backwards: what runs later finds warmer caches. */
const inTurn = (into: Series): readonly Variant[] => (into.run.length % 2 === 0 ? VARIANTS : VARIANTS.toReversed());

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

interface Limits {
  readonly authHit?: number;
  readonly established?: number;
}

function results(name: string, s: Series, limits: Limits): BenchResult[] {
  const value = (variant: Variant) => round(median(s[variant]));
  const over = (variant: Variant, base: Variant) => round(median(s[variant].map((ns, i) => ns - s[base][i]!)));
  const line = (variant: Variant, base: Variant, limit?: number): BenchResult => ({
    name: `verdict/${name}/${variant}`,
    value: value(variant),
    unit: 'ns/packet',
    floor: { name: base, value: value(base) },
    ratio: round(value(variant) / value(base), 100),
    ...(limit === undefined
      ? { target: `${over(variant, base)} ns over ${base}` }
      : { target: `at most ${limit} ns over ${base}, now ${over(variant, base)}`, ok: over(variant, base) <= limit }),
  });
  return [
    { name: `verdict/${name}/run`, value: value('run'), unit: 'ns/packet' },
    line('parse-only', 'run'),
    line('allow', 'parse-only'),
    line('auth-hit', 'allow', limits.authHit),
    line('established', 'parse-only', limits.established),
  ];
}

/** The same key in a larger world. */
function growth(name: string, s: Series, least: Series): BenchResult[] {
  return (['allow', 'auth-hit', 'established'] as const).map((variant) => {
    const ratio = round(median(s[variant].map((ns, i) => ns / least[variant][i]!)), 1000);
    return {
      name: `verdict/${name}/${variant}/growth`,
      value: round(median(s[variant])),
      unit: 'ns/packet',
      rival: { name: 'one', value: round(median(least[variant])) },
      ratio,
      target: `under ${GROWTH_LIMIT} times one rule, one identity`,
      ok: ratio < GROWTH_LIMIT,
    };
  });
}

export const bench: Bench = {
  name: 'verdict',
  async run(emit, progress) {
    if (unavailable !== undefined) throw new Error(unavailable);
    const ready = worlds.map((shape) => {
      progress(`verdict: filling the maps: ${shape.name}`);
      const kernel = populate(shape);
      check(kernel, shape);
      return { shape, kernel, hot: series(), random: series() };
    });
    const proofs = ready.filter(({ shape }) => shape.name.startsWith('proofs/'));
    try {
      for (let n = 1; n <= ROUNDS; n++) {
        for (const { kernel, hot } of ready) measureHot(kernel, hot);
        if (n % 10 === 0) progress(`verdict: hot key, round ${n} of ${ROUNDS}`);
      }
      const packets = Array.from({ length: REMOTES }, (_, i) => packetTo(i));
      // The flows of all packets, so that each is established.
      for (const { kernel } of proofs) {
        prepare(kernel, 'established');
        for (const packet of packets) kernel.fire('from_workload', packet);
      }
      for (let n = 1; n <= ROUNDS; n++) {
        for (const { kernel, random } of proofs) measureRandom(kernel, packets, random);
        if (n % 10 === 0) progress(`verdict: random keys, round ${n} of ${ROUNDS}`);
      }
      const least = ready[0]!.hot;
      for (const { shape, hot, random } of ready) {
        const limits =
          shape.everyLength === true ? {} : { authHit: AUTH_HIT_LIMIT_NS, established: ESTABLISHED_LIMIT_NS };
        for (const result of results(`hot/${shape.name}`, hot, limits)) emit(result);
        if (shape.rules > 1) for (const result of growth(`hot/${shape.name}`, hot, least)) emit(result);
        if (random.run.length === 0) continue;
        const limit = shape.proofs < 1_000_000 ? {} : { authHit: RANDOM_AUTH_LIMIT_NS };
        for (const result of results(`random/${shape.name}`, random, limit)) emit(result);
      }
    } finally {
      for (const { kernel } of ready) kernel.close();
    }
  },
};

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1]!;
}

function round(value: number, parts = 10): number {
  return Math.round(value * parts) / parts;
}

if (import.meta.main) {
  await bench.run(
    (result) => process.stdout.write(`${JSON.stringify(result)}\n`),
    (line) => process.stderr.write(`${line}\n`),
  );
  process.exit(0);
}
