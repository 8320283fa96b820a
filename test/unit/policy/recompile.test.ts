import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Direction, PolicyDelta, PolicyVerdict } from '../../../src/model/datapath.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { IDENTITY_HOST, IDENTITY_WORLD, type SecurityIdentity } from '../../../src/model/ids.ts';
import { type CompiledPolicy, compilePolicy, recompile } from '../../../src/policy/compile.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { identityOf, NODE_LABELS, PACKETS, policies, rowOf, type Workload, workload } from './random-policies.ts';
import { SimulatedKernel } from './simulated-kernel.ts';

const runs = Number(process.env.COUNTERSIGN_POLICY_RUNS ?? 300);

interface Look {
  readonly direction: Direction;
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
  readonly protocol: number;
  readonly port: number;
}

/** Who there is, and which of them are on this node. */
interface Population {
  readonly workloads: readonly Workload[];
  readonly locals: readonly SecurityIdentity[];
}

const NUMBERS = [0, 1, 2, 3, 4, 5];
const population: fc.Arbitrary<Population> = fc
  .record({
    workloads: fc.tuple(...NUMBERS.map(workload)),
    there: fc.array(fc.constantFrom(true, true, true, false), { minLength: 6, maxLength: 6 }),
    here: fc.array(fc.boolean(), { minLength: 6, maxLength: 6 }),
  })
  .map(({ workloads, there, here }) => ({
    workloads: workloads.filter((_, i) => there[i]),
    locals: NUMBERS.filter((i) => here[i]).map(identityOf),
  }));

/** Most of them as before: then a change of one is seen beside what stays. */
function mixed(before: Population, after: Population, changed: readonly boolean[]): Population {
  const workloads = NUMBERS.flatMap((number) => {
    const from = changed[number] ? after : before;
    return from.workloads.filter((one) => one.number === number);
  });
  const locals = NUMBERS.filter((number) => (changed[number] ? after : before).locals.includes(identityOf(number)));
  return { workloads, locals: locals.map(identityOf) };
}

const looks = fc.array(
  fc.record({
    direction: fc.constantFrom<Direction>('egress', 'ingress'),
    local: fc.constantFrom(...NUMBERS.map(identityOf), IDENTITY_HOST),
    remote: fc.constantFrom(...NUMBERS.map(identityOf), IDENTITY_HOST, IDENTITY_WORLD),
    packet: fc.constantFrom(...PACKETS),
  }),
  { minLength: 25, maxLength: 25 },
);

const brief = ({ verdict, authType }: Pick<PolicyVerdict, 'verdict' | 'authType'>) => `${verdict} ${authType}`;

function seen(kernel: SimulatedKernel, { direction, local, remote, protocol, port }: Look): string {
  return brief(kernel.verdict(direction, local, remote, protocol, port));
}

function sizes(compiled: CompiledPolicy) {
  return { classes: compiled.tables.classes.length, entries: compiled.tables.entries.length };
}

describe('the way from one set of identities and endpoints to another', () => {
  it('passes through nothing that neither of them allows, and ends where the policies lead', () => {
    fc.assert(
      fc.property(
        policies,
        population,
        fc.array(fc.tuple(population, fc.array(fc.boolean(), { minLength: 6, maxLength: 6 })), {
          minLength: 1,
          maxLength: 3,
        }),
        looks,
        (policies, first, steps, drawn) => {
          const looks = drawn.map(({ packet: [protocol, port], ...rest }) => ({ ...rest, protocol, port }));
          const options = { nodeLabels: NODE_LABELS };
          let now = first;
          let compiled = compilePolicy(policies, now.workloads.map(rowOf), now.locals, options);
          const kernel = new SimulatedKernel(compiled.tables);
          for (const [next, changed] of steps) {
            now = mixed(now, next, changed);
            const rows = now.workloads.map(rowOf);
            const before = looks.map((look) => seen(kernel, look));
            const fresh = new SimulatedKernel(compilePolicy(policies, rows, now.locals, options).tables);
            const after = looks.map((look) => seen(fresh, look));
            const old = compiled;
            const oldSizes = sizes(old);
            const step = recompile(compiled, rows, now.locals);
            for (const write of kernel.writes(step.delta)) {
              looks.forEach((look, i) => {
                const between = seen(kernel, look);
                const isFine = between === 'deny none' || between === before[i] || between === after[i];
                if (!isFine) expect(`${between} after ${write}`).toBe(`${before[i]} or ${after[i]}`);
              });
            }
            expect(looks.map((look) => seen(kernel, look))).toEqual(after);
            compiled = step.compiled;
            // Nothing is left over, and what was there before is as it was.
            expect(kernel.contents()).toEqual(sizes(compiled));
            const made = new SimulatedKernel(compiled.tables);
            expect(looks.map((look) => seen(made, look))).toEqual(after);
            expect(sizes(old)).toEqual(oldSizes);
            const { workloads } = now;
            for (const { number } of workloads) {
              expect(compiled.decide(identityOf(number), IDENTITY_WORLD, 6, 80)).toEqual(
                compilePolicy(policies, rows, now.locals, options).decide(identityOf(number), IDENTITY_WORLD, 6, 80),
              );
            }
          }
        },
      ),
      { numRuns: runs },
    );
  }, 120_000);
});

const TEXT = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: backend}
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
`;

function named(number: number, app: string): IdentityRow {
  return rowOf({ number, app, tier: undefined, namespace: undefined, ports: [] });
}

function size({ putEntries, putClasses, deleteClasses, deleteEntries }: PolicyDelta): number {
  return putEntries.length + putClasses.length + deleteClasses.length + deleteEntries.length;
}

describe('a change of identities or endpoints', () => {
  const { policies } = parsePolicies('p.yaml', TEXT);
  const backend = named(0, 'backend');
  const frontend = named(2, 'frontend');
  const compiled = compilePolicy(policies, [backend, frontend], [backend.identity]);

  it('writes nothing where nothing that policy looks at is different', () => {
    const same = { ...frontend, labels: { ...frontend.labels } };
    const again = recompile(compiled, [backend, same], [backend.identity]);
    expect(size(again.delta)).toBe(0);
    expect(again.compiled).toBe(compiled);
  });

  it('writes one row for an identity of a class that is there', () => {
    const { delta } = recompile(compiled, [backend, frontend, named(4, 'frontend')], [backend.identity]);
    expect(size(delta)).toBe(1);
    expect(delta.putClasses[0]!.identity).toBe(identityOf(4));
  });

  it('writes one row for an identity that is gone', () => {
    const { delta } = recompile(compiled, [backend], [backend.identity]);
    expect(delta).toMatchObject({ putClasses: [], deleteClasses: [frontend.identity] });
  });

  it('makes two that change their labels at once nobody on the way', () => {
    const swapped = [named(0, 'frontend'), named(2, 'backend')];
    const { delta } = recompile(compiled, swapped, [backend.identity, frontend.identity]);
    const rows = delta.putClasses.filter(({ identity }) => identity === frontend.identity);
    expect(rows.at(0)).toMatchObject({ local: { egress: 0, ingress: 0 }, remote: { egress: 1, ingress: 1 } });
    expect(rows.at(-1)!.local.ingress).toBeGreaterThan(0);
  });

  it('refuses a policy that somebody else made', () => {
    expect(() => recompile({ ...compiled }, [], [])).toThrow('was not compiled here');
  });
});
