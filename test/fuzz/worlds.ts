/** Random worlds: who is there, who vouches for whom, what policy says, what is proven. Small, so that things meet. */
import { IFINDEX, smallWorld } from '../bpf/table/statements.ts';
import { flowProofKey } from '../reference/policy.ts';
import type {
  AddressEntry,
  AuthType,
  ClassRow,
  Config,
  Endpoint,
  Fence,
  FlowProof,
  PolicyLine,
  PrefixEntry,
  Proof,
  State,
} from '../reference/state.ts';
import { NEVER } from '../reference/state.ts';
import type { Random } from './random.ts';

const MAPPED = `${'00'.repeat(10)}ffff`;
const v4 = (hex: string) => MAPPED + hex;
const v6 = (tail: string) => `fd00000086dd${tail}`;

/** By name; the first of each pair is IPv4. Bytes 4 and 5 on the wire are their own EtherType, see packets.ts. */
export const ADDRESSES = {
  A: [v4('0800010a'), v6('0001000000000000000a')],
  B: [v4('08000114'), v6('0001000000000000000b')],
  R: [v4('0800021e'), v6('0002000000000000000c')],
  /** Another workload, on node 8. */
  S: [v4('08000232'), v6('00020000000000000032')],
  N: [v4('08000263'), v6('00020000000000000099')],
  H: [v4('08006401'), v6('80640000000000000001')],
  M: [v4('08006407'), v6('80640000000000000007')],
  W: [v4('0800c8c8'), v6('ffff0000000000000001')],
  V: [v4('0800c901'), v6('ffff0001000000000001')],
} as const;
export type Name = keyof typeof ADDRESSES;

const CIDR = 1 << 24;
export const IDENTITY: Readonly<Record<Name, number>> = {
  A: 1000,
  B: 2000,
  R: 3000,
  S: 4000,
  N: 0,
  H: 1,
  M: 6,
  W: 2,
  V: 2,
};
const IDENTITIES = [1000, 2000, 3000, 4000, 1, 2, 6, CIDR, CIDR + 1];
const NODES: Partial<Record<Name, number>> = { R: 7, S: 8, M: 7 };

export function randomWorld(r: Random): State {
  return {
    ...smallWorld(),
    config: randomConfig(r),
    hostExempt: {
      servers: r.percent(50) ? [{ address: r.pick([...ADDRESSES.W, ...ADDRESSES.H]), port: r.pick(PORTS) }] : [],
      udpPorts: r.percent(50) ? [r.pick(PORTS)] : [],
    },
    endpoints: randomEndpoints(r),
    fences: randomFences(r),
    addresses: randomAddresses(r),
    prefixes: randomPrefixes(r),
    classes: randomClasses(r),
    policy: randomPolicy(r),
    proofs: randomProofs(r),
    flowProofs: randomFlowProofs(r),
  };
}

export function randomConfig(r: Random, revision = 1): Config {
  return {
    revision: r.oneIn(30) ? 'stateless' : revision,
    epoch: r.oneIn(8) ? 2 : 1,
    holds: r.percent(65),
    holdLimitIdentity: r.weighted([
      [100, 6],
      [2, 2],
      [0, 1],
    ]),
    holdLimitTotal: r.weighted([
      [1000, 6],
      [3, 2],
      [0, 1],
    ]),
    allowUnbound: r.percent(15),
    observe: r.percent(5),
    stopped: r.percent(3),
    exemptDhcp: r.percent(25),
    exemptHostProbes: r.percent(25),
    peerPort: 4250,
    hostEgress: r.percent(30),
    hostIngress: r.percent(30),
  };
}

export function randomEndpoints(r: Random): ReadonlyMap<number, Endpoint> {
  const endpoints: Endpoint[] = [];
  if (!r.oneIn(40)) {
    const mac = r.percent(30) ? { mac: '02000000000a' } : {};
    const id = r.oneIn(60) ? 9 : 5;
    endpoints.push({ ifindex: IFINDEX, id, identity: r.oneIn(30) ? 2000 : 1000, open: !r.oneIn(25), ...mac });
  }
  if (!r.oneIn(12)) endpoints.push({ ifindex: 1006, id: 6, identity: 2000, open: !r.oneIn(10) });
  return new Map(endpoints.map((e) => [e.ifindex, e]));
}

/** Towards nodes that are spoken with, and others. */
export function randomFences(r: Random): readonly Fence[] {
  if (!r.oneIn(6)) return [];
  const all = [5, 6, 9].flatMap((endpoint) => [7, 8, 9].map((node) => ({ endpoint, node })));
  return all.filter(() => r.percent(30));
}

/** Another endpoint under the same interface and addresses, or the first one again. */
export function randomTakeover(r: Random): Pick<State, 'endpoints' | 'addresses'> {
  const id = r.pick([5, 9]);
  const endpoints = new Map([...randomEndpoints(r)].map(([k, e]) => [k, k === IFINDEX ? { ...e, id, open: true } : e]));
  const own = (e: AddressEntry) => e.kind === 'local' && e.identity === IDENTITY.A;
  const addresses = new Map([...randomAddresses(r)].map(([k, e]) => [k, own(e) ? { ...e, endpoint: id } : e]));
  return { endpoints, addresses };
}

const KINDS: Readonly<Record<Name, AddressEntry['kind']>> = {
  A: 'local',
  B: 'local',
  R: 'node',
  S: 'node',
  N: 'nobody',
  H: 'reserved',
  M: 'reserved',
  W: 'nobody',
  V: 'nobody',
};

export function randomAddresses(r: Random): ReadonlyMap<string, AddressEntry> {
  const out = new Map<string, AddressEntry>();
  for (const name of ['A', 'B', 'R', 'S', 'H', 'M'] as const) {
    for (const address of ADDRESSES[name]) {
      if (r.oneIn(name === 'A' ? 80 : 25)) continue;
      const kind = KINDS[name];
      const node = kind === 'node' || name === 'M' ? (r.oneIn(30) ? 9 : NODES[name]!) : 0;
      const leaseEnds =
        kind === 'node'
          ? r.weighted([
              [5000, 12],
              [NEVER, 2],
              [-10, 1],
              [20, 2],
            ])
          : NEVER;
      out.set(address, {
        kind,
        identity: r.oneIn(40) ? 77777 : IDENTITY[name],
        node,
        endpoint: name === 'A' ? (r.oneIn(80) ? 9 : 5) : name === 'B' ? 6 : 0,
        leaseEnds,
        encrypt: kind !== 'local' && r.oneIn(15),
      });
    }
  }
  // Vouched for once, by nobody now.
  if (r.oneIn(10)) {
    const nobody = { kind: 'nobody', identity: 3000, node: 0, endpoint: 0, leaseEnds: NEVER, encrypt: false } as const;
    out.set(ADDRESSES.N[r.below(2)]!, nobody);
  }
  return out;
}

export function randomPrefixes(r: Random): readonly PrefixEntry[] {
  const cluster: PrefixEntry[] = [
    { address: v4('08000000'), length: 96 + 18, cluster: true, encrypt: r.oneIn(10) },
    { address: v6('00000000000000000000'), length: 49, cluster: true, encrypt: r.oneIn(10) },
  ];
  const cidrs: PrefixEntry[] = [];
  for (const address of [...ADDRESSES.W, ...ADDRESSES.V]) {
    if (!r.percent(35)) continue;
    for (let i = 0; i <= r.below(2); i++) {
      const least = address.startsWith(MAPPED) ? 96 : 0;
      const length = r.weighted([
        [128, 3],
        [120, 3],
        [least, 1],
        [least + r.below(129 - least), 3],
      ]);
      const identity = r.percent(85) ? { identity: CIDR + r.below(2) } : {};
      cidrs.push({ address: masked(address, length), length, cluster: false, encrypt: r.oneIn(10), ...identity });
    }
  }
  // One entry for each prefix, as in a map.
  const byKey = new Map([...cidrs, ...cluster].map((p) => [`${p.address}/${p.length}`, p]));
  return [...byKey.values()];
}

function masked(address: string, length: number): string {
  const bits = [...address].map((d) => Number.parseInt(d, 16).toString(2).padStart(4, '0')).join('');
  return bits
    .slice(0, length)
    .padEnd(128, '0')
    .replace(/..../g, (four) => Number.parseInt(four, 2).toString(16));
}

const CLASSES = 4;

export function randomClasses(r: Random): ReadonlyMap<number, ClassRow> {
  const number = () => 1 + r.below(CLASSES);
  const pair = () => ({ egress: number(), ingress: number() });
  const known = IDENTITIES.filter(() => !r.oneIn(20));
  return new Map(known.map((identity) => [identity, { local: pair(), remote: pair() }]));
}

/** Of flows that may have proofs of their own. */
export const PROVEN_PORTS = [53, 80];
export const PORTS = [53, 80, 8080, 8081, 8095, 4250, 40000, 0, 65535, 8, 128];

const randomAuth = (r: Random): AuthType =>
  r.weighted([
    ['none', 14],
    ['spiffe', 5],
    ['connection', 3],
    ['always-fail', 1],
  ]);

export function randomPolicy(r: Random): readonly PolicyLine[] {
  const lines = new Map<string, PolicyLine>();
  const add = (line: PolicyLine) => {
    const { local, remote, direction, protocol, port, portBits } = line;
    lines.set(`${local} ${remote} ${direction} ${protocol} ${port} ${portBits}`, line);
  };
  // Half of the worlds allow much, so that there are flows; some of it for a proof.
  if (r.percent(60)) {
    for (let local = 1; local <= CLASSES; local++) {
      for (const direction of ['egress', 'ingress'] as const) {
        const any = { local, remote: 0, direction, protocol: 0, port: 0, portBits: 0, rule: 1 } as const;
        if (r.percent(75)) add({ ...any, verdict: 'allow', auth: randomAuth(r) });
      }
    }
  }
  const count = r.weighted([
    [0, 1],
    [2, 2],
    [6, 4],
    [20, 3],
  ]);
  for (let i = 0; i < count; i++) {
    const protocol = r.weighted([
      [0, 5],
      [6, 5],
      [17, 5],
      [132, 3],
      [1, 1],
      [58, 1],
    ]);
    const portBits =
      protocol === 0
        ? 0
        : r.weighted([
            [0, 3],
            [16, 4],
            [r.below(17), 3],
          ]);
    const port = r.percent(85) ? r.pick(PORTS) : r.below(65536);
    const key = {
      local: 1 + r.below(CLASSES),
      remote: r.below(CLASSES + 1),
      direction: r.percent(50) ? 'egress' : 'ingress',
      protocol,
    } as const;
    // Often prefixes of one port inside each other, with other verdicts.
    const lengths = portBits > 0 && r.percent(40) ? [portBits, r.below(17), r.below(17)] : [portBits];
    for (const bits of lengths) add({ ...key, ...prefixOfPort(port, bits), ...randomDecision(r) });
  }
  return [...lines.values()];
}

const prefixOfPort = (port: number, portBits: number) => ({
  port: portBits === 0 ? 0 : Math.floor(port / 2 ** (16 - portBits)) * 2 ** (16 - portBits),
  portBits,
});

function randomDecision(r: Random): Pick<PolicyLine, 'verdict' | 'auth' | 'rule' | 'observed'> {
  const verdict = r.percent(75) ? 'allow' : 'deny';
  return {
    verdict,
    auth: verdict === 'allow' ? randomAuth(r) : 'none',
    rule: r.percent(70) ? 1 + r.below(9) : 0,
    ...(r.percent(85) ? {} : { observed: randomObserved(r) }),
  };
}

function randomObserved(r: Random): NonNullable<PolicyLine['observed']> {
  const verdict = r.percent(50) ? 'allow' : 'deny';
  return { verdict, auth: verdict === 'allow' ? randomAuth(r) : 'none', rule: r.below(3) };
}

export function randomProofs(r: Random): readonly Proof[] {
  const out: Proof[] = [];
  const pairs = [
    [3000, 7],
    [4000, 8],
    [2000, 0],
    [1000, 0],
  ] as const;
  for (const local of [1000, 2000]) {
    for (const [remote, node] of pairs) {
      if (!r.percent(60)) continue;
      const ends = r.weighted([
        [6000, 8],
        [20, 2],
        [-10, 1],
      ]);
      out.push({
        local,
        remote,
        node: r.oneIn(15) ? 9 : node,
        ends,
        epoch: r.below(8) === 0 ? 0 : 2,
        refused: r.oneIn(8),
      });
    }
  }
  return out;
}

/** Of some flows between A and workloads, over the ports that are spoken of most. */
export function randomFlowProofs(r: Random): ReadonlyMap<string, FlowProof> {
  const out = new Map<string, FlowProof>();
  if (r.oneIn(3)) return out;
  for (const [name, node] of [
    ['R', 7],
    ['S', 8],
    ['B', 0],
  ] as const) {
    for (const family of [0, 1] as const) {
      for (const protocol of [6, 17, 132]) {
        for (const localPort of PROVEN_PORTS) {
          for (const remotePort of PROVEN_PORTS) {
            if (r.oneIn(3)) continue;
            const side = {
              protocol,
              local: ADDRESSES.A[family],
              remote: ADDRESSES[name][family],
              localPort,
              remotePort,
            };
            const ends = r.weighted([
              [6000, 8],
              [20, 2],
              [-10, 1],
            ]);
            out.set(flowProofKey(r.oneIn(30) ? 9 : 5, side), {
              local: r.oneIn(30) ? 2000 : 1000,
              remote: r.oneIn(30) ? 2000 : IDENTITY[name],
              node: r.oneIn(30) ? 9 : node,
              ends,
              epoch: r.oneIn(8) ? 0 : 2,
              refused: r.oneIn(12),
            });
          }
        }
      }
    }
  }
  return out;
}
