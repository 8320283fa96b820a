/** What policies say is what the kernel does: random policies, compiled, in the real maps; packets to and from everybody. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { addressBytes, datapathPrefixLength, parseAddress } from '../../src/model/address.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, type IpAddress, type SecurityIdentity } from '../../src/model/ids.ts';
import { type CompiledPolicy, compilePolicy, type Verdict } from '../../src/policy/compile.ts';
import { Machine } from '../fuzz/machine.ts';
import { judge } from '../reference/judge.ts';
import { type AddressEntry, type AuthType, NEVER, type Program, type State } from '../reference/state.ts';
import { SLOW } from '../support/slow.ts';
import { NODE_LABELS, PACKETS, policies, rowOf, workloads } from '../unit/policy/random-policies.ts';
import { unavailable } from './support/kernel.ts';
import { families } from './support/world.ts';
import { packetOf } from './table/packet-text.ts';
import { etherTypeOf } from './table/run.ts';
import { hexOf, IFINDEX, smallWorld } from './table/statements.ts';

const [v4] = families;
const OUTSIDE = ['10.1.2.3', '10.1.2.4', '10.1.3.1', '10.9.9.9', '192.0.2.1', '2001:db8::1', '2a00::1'].map(
  (text) => parseAddress(text)!,
);
const OWN: Readonly<Record<4 | 6, IpAddress>> = { 4: families[0]!.a, 6: families[1]!.a };
const AUTH: Readonly<Record<string, AuthType>> = {
  none: 'none',
  spiffe: 'spiffe',
  'spiffe-connection': 'connection',
  'test-always-fail': 'always-fail',
};

interface Peer {
  readonly identity: SecurityIdentity;
  readonly address: IpAddress;
  readonly kind: 'local' | 'node' | 'reserved' | 'world';
}

/** The endpoint has this identity; everybody else is a workload of another node, a node, or outside. */
function stateOf(compiled: CompiledPolicy, local: SecurityIdentity, peers: readonly Peer[]): State {
  const world = smallWorld();
  const { tables } = compiled;
  const own = { kind: 'local', identity: local, node: 0, endpoint: 5, leaseEnds: NEVER, encrypt: false } as const;
  const addresses = new Map<string, AddressEntry>(Object.values(OWN).map((address) => [hexOf(address), own]));
  for (const { kind, address, identity } of peers) {
    if (kind !== 'world')
      addresses.set(hexOf(address), { ...own, kind, identity, node: kind === 'node' ? 7 : 0, endpoint: 0 });
  }
  const outcome = (v: Pick<Verdict, 'verdict' | 'authType' | 'rule'>) => ({
    verdict: v.verdict,
    auth: AUTH[v.authType]!,
    rule: v.rule,
  });
  return {
    ...world,
    config: { ...world.config, holds: false },
    endpoints: new Map([[IFINDEX, { ifindex: IFINDEX, id: 5, identity: local, open: true }]]),
    addresses,
    prefixes: [
      ...world.prefixes,
      ...tables.cidrs.map(({ prefix, identity }) => ({
        address: addressBytes(prefix.address).toString('hex'),
        length: datapathPrefixLength(prefix),
        identity,
        cluster: false,
        encrypt: false,
      })),
    ],
    classes: new Map(tables.classes.map((row) => [row.identity, row])),
    policy: tables.entries.map((e) => ({
      local: e.local,
      remote: e.remote,
      direction: e.direction,
      protocol: e.protocol,
      port: e.port,
      portBits: e.portBits,
      ...outcome(e),
      ...(e.observed === undefined ? {} : { observed: outcome(e.observed) }),
    })),
  };
}

/** A packet that opens a flow, to or from the endpoint. undefined: this family has none such, or the kernel knows none. */
function openerOf(peer: Peer, egress: boolean, protocol: number, port: number) {
  const version = peer.address.includes(':') ? 6 : 4;
  const echo = version === 4 ? 8 : 128;
  const what: Readonly<Record<number, string | undefined>> = {
    6: `tcp 40000>${port} S`,
    17: `udp 40000>${port}`,
    132: `sctp 40000>${port} init`,
    [version === 4 ? 1 : 58]: port === echo ? 'echo 9' : undefined,
  };
  if (what[protocol] === undefined) return undefined;
  const ends = egress ? `${OWN[version]}>${peer.address}` : `${peer.address}>${OWN[version]}`;
  const mark = !egress && peer.kind === 'node' ? ' mark=tunnel' : '';
  return packetOf(`${ends} ${what[protocol]}${mark}`, v4!);
}

/** Without any proof. */
function expected({ verdict, authType, rule }: Verdict, peer: Peer): string {
  if (verdict === 'deny') return rule === 0 ? 'drop POLICY_DENIED' : 'drop POLICY_DENY_RULE';
  if (authType === 'none') return 'pass';
  if (peer.kind !== 'node') return 'drop AUTH_NOT_A_WORKLOAD';
  return authType === 'test-always-fail' ? 'drop AUTH_ALWAYS_FAIL' : 'drop AUTH_REQUIRED';
}

const looks = fc.array(fc.tuple(fc.nat(), fc.nat(), fc.boolean()), { minLength: 60, maxLength: 60 });

describe.skipIf(unavailable)('compiled policies in the kernel', () => {
  let machine: Machine;
  beforeAll(() => {
    machine = new Machine();
  });
  afterAll(() => machine?.close());

  test(
    'are enforced as they are written',
    () => {
      fc.assert(
        fc.property(policies, workloads, fc.nat(5), looks, (policies, workloads, self, looks) => {
          const rows = workloads.map(rowOf);
          const local = rows[self]!.identity;
          const compiled = compilePolicy(policies, rows, [local], { nodeLabels: NODE_LABELS });
          const others = rows.filter(({ identity }) => identity !== local);
          const peers: Peer[] = [
            ...others.flatMap(({ identity }, i): Peer[] => [
              { identity, address: `8.0.2.${i + 100}` as IpAddress, kind: 'node' },
              { identity, address: `fd00:0:86dd:2::${i + 100}` as IpAddress, kind: 'node' },
            ]),
            { identity: IDENTITY_HOST, address: v4!.host, kind: 'reserved' },
            { identity: IDENTITY_REMOTE_NODE, address: v4!.remoteNode, kind: 'reserved' },
            ...OUTSIDE.map((address): Peer => {
              return { identity: compiled.identityOfAddress(address), address, kind: 'world' };
            }),
          ];
          let state = stateOf(compiled, local, peers);
          machine.reset(state);
          for (const [a, b, egress] of looks) {
            const peer = peers[a % peers.length]!;
            const [protocol, port] = PACKETS[b % PACKETS.length]!;
            const packet = openerOf(peer, egress, protocol, port);
            if (packet === undefined) continue;
            const decision = egress
              ? compiled.decide(local, peer.identity, protocol, port).egress
              : compiled.decide(peer.identity, local, protocol, port).ingress;
            const program: Program = egress ? 'from_workload' : 'to_workload';
            const kernel = machine.run(program, packet.frame, packet.mark, IFINDEX);
            const meta = { ifindex: IFINDEX, mark: packet.mark, etherType: etherTypeOf(packet.frame) };
            const reference = judge(program, packet.frame, meta, state);
            state = reference.state;
            const at = `${program} ${peer.address} protocol ${protocol} port ${port}`;
            const said = reference.reason === undefined ? reference.action : `${reference.action} ${reference.reason}`;
            expect(`${at}: ${said}`).toBe(`${at}: ${expected(decision, peer)}`);
            expect(`${at}: ${kernel?.action}`).toBe(`${at}: ${reference.action}`);
          }
        }),
        { numRuns: 150 },
      );
    },
    60_000 * SLOW,
  );
});
