/** The kernel's entries and the plain reading of the policies say the same, whatever the policies. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAddress } from '../../../src/model/address.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type SecurityIdentity } from '../../../src/model/ids.ts';
import { type CompiledPolicy, compilePolicy, type Verdict } from '../../../src/policy/compile.ts';
import { identityOf, NODE_LABELS, PACKETS, policies, rowOf, workloads } from './random-policies.ts';
import { SimulatedKernel } from './simulated-kernel.ts';

const DIRECTIONS = ['egress', 'ingress'] as const;
const runs = Number(process.env.COUNTERSIGN_POLICY_RUNS ?? 500);

const world = fc.record({
  policies,
  workloads,
  /** Where to look: pairs and packets, as numbers that are folded to what there is. */
  looks: fc.array(fc.tuple(fc.nat(), fc.nat(), fc.nat(), fc.boolean()), { minLength: 40, maxLength: 40 }),
});

const ADDRESSES = ['10.1.2.3', '10.1.2.4', '10.1.3.1', '10.9.9.9', '192.0.2.1', '8.8.8.8', '2001:db8::1', '2a00::1'];

function sideAt(compiled: CompiledPolicy, egress: boolean, local: SecurityIdentity, remote: SecurityIdentity) {
  return (protocol: number, port: number): Verdict =>
    egress
      ? compiled.decide(local, remote, protocol, port).egress
      : compiled.decide(remote, local, protocol, port).ingress;
}

const brief = ({ verdict, authType }: Pick<Verdict, 'verdict' | 'authType'>) => `${verdict} ${authType}`;
const text = (verdict: Verdict) =>
  verdict.observed === undefined ? brief(verdict) : `${brief(verdict)}, observed ${brief(verdict.observed)}`;

describe('compiled entries, looked up as the kernel does', () => {
  it('say what the policies say, of every end, protocol and port, in force and observed', () => {
    fc.assert(
      fc.property(world, ({ policies, workloads, looks }) => {
        const rows = workloads.map(rowOf);
        const locals = [0, 1, 3, 4].map((i) => rows[i]!.identity);
        const compiled = compilePolicy(policies, rows, locals, { nodeLabels: NODE_LABELS });
        const kernel = new SimulatedKernel(compiled.tables);
        const outside = ADDRESSES.map((address) => compiled.identityOfAddress(parseAddress(address)!));
        const here = [...locals, IDENTITY_HOST];
        const everybody = [
          ...rows.map(({ identity }) => identity),
          IDENTITY_HOST,
          IDENTITY_REMOTE_NODE,
          IDENTITY_WORLD,
          ...outside,
          identityOf(99),
        ];
        for (const [a, b, c, egress] of looks) {
          const local = here[a % here.length]!;
          const remote = everybody[b % everybody.length]!;
          const [protocol, port] = PACKETS[c % PACKETS.length]!;
          const wanted = sideAt(compiled, egress, local, remote)(protocol, port);
          const direction = DIRECTIONS[egress ? 0 : 1];
          const found = kernel.look(direction, local, remote, protocol, port) ?? {
            verdict: 'deny',
            authType: 'none',
            rule: 0,
          };
          expect(text(found)).toBe(text(wanted));
          // Where the other side asks for the proof, the entry names the own rule that lets the packet pass.
          const isOwn = wanted.rule === 0 || compiled.rules[wanted.rule]!.direction === direction;
          if (isOwn) expect(found.rule).toBe(wanted.rule);
          else expect(found.rule === 0 || compiled.rules[found.rule]!.direction === direction).toBe(true);
        }
      }),
      { numRuns: runs },
    );
  }, 120_000);

  it('name all proofs that flows between two workloads need, and no others', () => {
    fc.assert(
      fc.property(world, ({ policies, workloads, looks }) => {
        const rows = workloads.map(rowOf);
        const ids = rows.map(({ identity }) => identity);
        const compiled = compilePolicy(policies, rows, ids.slice(0, 3));
        for (const [a, b] of looks.slice(0, 2)) {
          const [one, two] = [ids[a % ids.length]!, ids[b % ids.length]!];
          const needed = new Set<string>();
          for (const [protocol, port] of PACKETS) {
            for (const [from, to] of [
              [one, two],
              [two, one],
            ] as const) {
              const { verdict, authType } = compiled.decide(from, to, protocol, port);
              if (verdict === 'allow' && authType !== 'none') needed.add(authType);
            }
          }
          expect(new Set(compiled.authTypesOf(one, two))).toEqual(needed);
          expect(new Set(compiled.authTypesOf(two, one))).toEqual(needed);
        }
        for (const { remote, authType } of compiled.requiredPairs()) {
          expect(compiled.requiredPeers(authType)).toContain(remote);
        }
      }),
      { numRuns: runs / 5 },
    );
  }, 120_000);
});
