/** The table's small world as plain state, and statements that change it: see `rows.ts` for how they read. */
import { addressBytes, isIpv4 } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { flowProofKey } from '../../reference/policy.ts';
import {
  type AddressEntry,
  type AuthType,
  type ClassRow,
  type Config,
  type Direction,
  HOST,
  NEVER,
  type PolicyLine,
  REMOTE_NODE,
  type State,
  WORLD,
} from '../../reference/state.ts';
import { A, type Addresses, B, families, R } from '../support/world.ts';
import { addressOf } from './packet-text.ts';

export const IFINDEX = 1;
const CIDR = 1 << 24;

export const hexOf = (address: IpAddress): string => addressBytes(address).toString('hex');

const IDENTITIES: Readonly<Record<string, number>> = {
  A: A.identity,
  B: B.identity,
  R: R.identity,
  H: HOST,
  M: REMOTE_NODE,
  W: WORLD,
  C: CIDR,
  D: CIDR + 1,
  '*': 0,
};

/** No two identities share a class, and no class has the same number in another role or direction. */
const classRow = (index: number): ClassRow => ({
  local: { egress: 101 + index, ingress: 201 + index },
  remote: { egress: 301 + index, ingress: 401 + index },
});

const entry = (e: Partial<AddressEntry> & Pick<AddressEntry, 'kind' | 'identity'>): AddressEntry => ({
  node: 0,
  endpoint: 0,
  leaseEnds: NEVER,
  encrypt: false,
  ...e,
});

/** Everybody is known and alive; no policy yet, so nothing may pass. */
export function smallWorld(): State {
  const identities = Object.values(IDENTITIES).filter((identity) => identity !== 0);
  return {
    now: 0,
    config: {
      revision: 1,
      epoch: 1,
      holds: true,
      holdLimitIdentity: 100,
      holdLimitTotal: 1000,
      allowUnbound: false,
      observe: false,
      stopped: false,
      exemptDhcp: false,
      exemptHostProbes: false,
      peerPort: 4250,
      hostEgress: false,
      hostIngress: false,
    },
    hostExempt: { servers: [], udpPorts: [51871] },
    endpoints: new Map([
      [IFINDEX, { ifindex: IFINDEX, id: A.endpoint, identity: A.identity, open: true }],
      [B.ifindex, { ifindex: B.ifindex, id: B.endpoint, identity: B.identity, open: true }],
    ]),
    fences: [],
    addresses: new Map(
      families.flatMap((f) => [
        [hexOf(f.a), entry({ kind: 'local', identity: A.identity, endpoint: A.endpoint })],
        [hexOf(f.b), entry({ kind: 'local', identity: B.identity, endpoint: B.endpoint })],
        [hexOf(f.r), entry({ kind: 'node', identity: R.identity, node: R.node, leaseEnds: 1000 })],
        [hexOf(f.host), entry({ kind: 'reserved', identity: HOST })],
        [hexOf(f.remoteNode), entry({ kind: 'reserved', identity: REMOTE_NODE, node: R.node })],
      ]),
    ),
    prefixes: families.map((f) => ({ ...prefixOf(...f.prefix), cluster: true, encrypt: false })),
    classes: new Map(identities.map((identity, i) => [identity, classRow(i)])),
    policy: [],
    proofs: [],
    flowProofs: new Map(),
    taken: new Map(),
    lastSeen: new Map([
      [A.endpoint, IFINDEX],
      [B.endpoint, B.ifindex],
    ]),
    flows: new Map(),
    datagrams: new Map(),
    waiting: new Map(),
    held: new Map(),
  };
}

const prefixOf = (address: IpAddress, length: number) => ({
  address: hexOf(address),
  length: isIpv4(address) ? length + 96 : length,
});

export const without = <K, V>(map: ReadonlyMap<K, V>, key: K): ReadonlyMap<K, V> =>
  new Map([...map].filter(([k]) => k !== key));
const and = <K, V>(map: ReadonlyMap<K, V>, key: K, value: V): ReadonlyMap<K, V> => new Map([...map, [key, value]]);

/** The state after a change that the agent makes. Packets, `wait`, `lost` and `returned` are the runner's. */
export function change(state: State, text: string, family: Addresses): State {
  const [verb, subject = '', ...rest] = text.split(/\s+/);
  const options = Object.fromEntries(rest.filter((w) => w.includes('=')).map((w) => w.split('=') as [string, string]));
  const has = (word: string) => rest.includes(word);
  const identity = (name: string) => IDENTITIES[name] ?? Number(name);
  const configured = (config: Partial<Config>): State => ({ ...state, config: { ...state.config, ...config } });
  const address = () => hexOf(addressOf(subject, family));
  const endpointOf = (name: string) => (name === 'A' ? IFINDEX : B.ifindex);
  const ofEndpoint = (e: object): State => ({
    ...state,
    endpoints: and(state.endpoints, endpointOf(subject), { ...state.endpoints.get(endpointOf(subject))!, ...e }),
  });
  const ofAddress = (e: Partial<AddressEntry>): State => ({
    ...state,
    addresses: and(state.addresses, address(), {
      ...(state.addresses.get(address()) ?? entry({ kind: 'node', identity: 0 })),
      ...e,
    }),
  });
  switch (verb) {
    case 'allow':
    case 'deny':
    case 'none':
      return { ...state, policy: replaced(state.policy, lineOf(verb, subject, rest, family, state.classes)) };
    case 'forbid-all':
      return { ...state, policy: [] };
    case 'proof':
    case 'refusal': {
      const [local, remote] = subject.split('-');
      const node = remote === 'R' ? R.node : 0;
      const proof = {
        local: identity(local!),
        remote: identity(remote!),
        node: Number(options.node ?? node),
        ends: Number(options.ends ?? 5000),
        epoch: Number(options.epoch ?? 1),
        refused: verb === 'refusal',
      };
      const same = (p: typeof proof) => p.local === proof.local && p.remote === proof.remote && p.node === proof.node;
      return { ...state, proofs: [...state.proofs.filter((p) => !same(p)), proof] };
    }
    case 'unproven':
      return { ...state, proofs: [], flowProofs: new Map() };
    case 'flow-proof':
    case 'flow-refusal': {
      // `flow-proof A-R udp 1>53`: as A sees it, of A's endpoint.
      const [local, remote] = subject.split('-') as [string, string];
      const [localPort, remotePort] = rest[1]!.split('>').map(Number) as [number, number];
      const side = {
        protocol: rest[0] === 'icmp' ? (family.name === 'IPv4' ? 1 : 58) : PROTOCOLS[rest[0]!]!,
        local: hexOf(addressOf(local, family)),
        remote: hexOf(addressOf(remote, family)),
        localPort,
        remotePort,
      };
      const key = flowProofKey(state.endpoints.get(endpointOf(local))!.id, side);
      const proof = {
        local: identity(local),
        remote: identity(remote),
        node: remote === 'R' ? R.node : 0,
        ends: Number(options.ends ?? 5000),
        epoch: Number(options.epoch ?? 1),
        refused: verb === 'flow-refusal',
      };
      return { ...state, flowProofs: and(state.flowProofs, key, proof) };
    }
    case 'lease':
      return ofAddress({ leaseEnds: Number(rest[0]) });
    case 'owner':
      return ofAddress({
        ...(options.kind === undefined ? {} : { kind: options.kind as AddressEntry['kind'] }),
        ...(options.identity === undefined ? {} : { identity: identity(options.identity) }),
        ...(options.node === undefined ? {} : { node: Number(options.node) }),
        ...(options.endpoint === undefined ? {} : { endpoint: Number(options.endpoint) }),
        ...(has('encrypt') ? { encrypt: true } : {}),
      });
    case 'forget':
      return { ...state, addresses: without(state.addresses, address()) };
    case 'prefix': {
      const [name, length] = subject.split('/');
      const prefix = {
        ...prefixOf(addressOf(name!, family), length === 'host' ? (family.name === 'IPv4' ? 32 : 128) : Number(length)),
        ...(options.identity === undefined ? {} : { identity: identity(options.identity) }),
        cluster: has('cluster'),
        encrypt: has('encrypt'),
      };
      return { ...state, prefixes: [...state.prefixes, maskedPrefix(prefix)] };
    }
    case 'fence': {
      // Towards one node, or at all.
      if (options.node === undefined) return ofEndpoint({ open: false });
      const { id } = state.endpoints.get(endpointOf(subject))!;
      return { ...state, fences: [...state.fences, { endpoint: id, node: Number(options.node) }] };
    }
    case 'open':
      return { ...state, fences: [] };
    case 'mac':
      return ofEndpoint({ mac: rest[0]!.replaceAll(':', '') });
    case 'becomes':
      return ofEndpoint({ id: Number(rest[0]), ...(rest[1] === undefined ? {} : { identity: identity(rest[1]) }) });
    case 'remove':
      return { ...state, endpoints: without(state.endpoints, endpointOf(subject)) };
    case 'unclassed':
      return { ...state, classes: without(state.classes, identity(subject)) };
    case 'bump': {
      const { revision } = state.config;
      return configured({ revision: revision === 'stateless' ? 1 : revision + 1 });
    }
    case 'stateless':
      return configured({ revision: 'stateless' });
    case 'observe':
      return configured({ observe: true });
    case 'stop':
      return configured({ stopped: true });
    case 'unbound':
      return configured({ allowUnbound: true });
    case 'no-hold':
      return configured({ holds: false });
    case 'exempt':
      return configured(subject === 'dhcp' ? { exemptDhcp: true } : { exemptHostProbes: true });
    case 'host':
      return configured({ hostEgress: subject !== 'in', hostIngress: subject !== 'out' });
    case 'server': {
      const servers = [...state.hostExempt.servers, { address: address(), port: Number(rest[0]) }];
      return { ...state, hostExempt: { ...state.hostExempt, servers } };
    }
    case 'epoch':
      return configured({ epoch: Number(subject) });
    case 'limit':
      return configured({ holdLimitIdentity: Number(subject) });
    case 'total':
      return configured({ holdLimitTotal: Number(subject) });
    default:
      throw new Error(`no statement begins with ${verb}: ${text}`);
  }
}

function maskedPrefix<P extends { address: string; length: number }>(prefix: P): P {
  const bits = [...prefix.address].map((d) => Number.parseInt(d, 16).toString(2).padStart(4, '0')).join('');
  const masked = bits.slice(0, prefix.length).padEnd(128, '0');
  const address = masked.replace(/..../g, (four) => Number.parseInt(four, 2).toString(16));
  return { ...prefix, address };
}

const PROTOCOLS: Readonly<Record<string, number>> = { any: 0, tcp: 6, udp: 17, sctp: 132 };

/** `A>R tcp/80`: what A may open to R. `A<R tcp/80`: what A takes from R. `tcp/8080/12`: ports that share 12 bits. */
function lineOf(
  verb: string,
  subject: string,
  rest: readonly string[],
  family: Addresses,
  classes: ReadonlyMap<number, ClassRow>,
): PolicyLine {
  const [, local, arrow, remote] = /^(.+)([<>])(.+)$/.exec(subject)!;
  const direction: Direction = arrow === '>' ? 'egress' : 'ingress';
  const what = rest.find((word) => /^(any|tcp|udp|sctp|icmp|\d+)(\/|$)/.test(word)) ?? 'any';
  const [name, port, bits] = what.split('/');
  const icmp = family.name === 'IPv4' ? 1 : 58;
  const protocol = name === 'icmp' ? icmp : (PROTOCOLS[name!] ?? Number(name));
  const portBits = bits !== undefined ? Number(bits) : port === undefined ? 0 : 16;
  const auth: AuthType = rest.includes('auth')
    ? 'spiffe'
    : rest.includes('each')
      ? 'connection'
      : rest.includes('fail')
        ? 'always-fail'
        : 'none';
  const verdict = verb === 'allow' ? 'allow' : 'deny';
  const observed = rest.find((word) => word.startsWith('would-'))?.slice('would-'.length);
  const named: Record<string, NonNullable<PolicyLine['observed']>> = {
    allow: { verdict: 'allow', auth: 'none', rule: 7 },
    auth: { verdict: 'allow', auth: 'spiffe', rule: 7 },
    each: { verdict: 'allow', auth: 'connection', rule: 7 },
    fail: { verdict: 'allow', auth: 'always-fail', rule: 7 },
    deny: { verdict: 'deny', auth: 'none', rule: 7 },
    none: { verdict: 'deny', auth: 'none', rule: 0 },
  };
  const type = port === 'echo' ? (icmp === 1 ? 8 : 128) : Number(port ?? 0);
  return {
    local: classes.get(IDENTITIES[local!]!)!.local[direction],
    remote: remote === '*' ? 0 : classes.get(IDENTITIES[remote!]!)!.remote[direction],
    direction,
    protocol,
    port: portBits === 0 ? 0 : (type >> (16 - portBits)) << (16 - portBits),
    portBits,
    verdict,
    auth,
    rule: verb === 'none' ? 0 : 5,
    ...(observed === undefined ? {} : { observed: named[observed]! }),
  };
}

/** A line replaces the one with the same key, as a map's entry does. */
function replaced(policy: readonly PolicyLine[], line: PolicyLine): readonly PolicyLine[] {
  const key = (l: PolicyLine) => `${l.local} ${l.remote} ${l.direction} ${l.protocol} ${l.port} ${l.portBits}`;
  return [...policy.filter((l) => key(l) !== key(line)), line];
}
