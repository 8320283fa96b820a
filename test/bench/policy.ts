/**
 * The policy compiler alone, without a kernel: 10,000 rules, 10,000 identities, 1,000 local endpoints, in shapes that real
 * clusters have; then one endpoint and one identity more.
 */

import { parsePrefix } from '../../src/model/address.ts';
import type { IdentityRow } from '../../src/model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../src/model/ids.ts';
import { spiffeId } from '../../src/model/spiffe-id.ts';
import { type CompiledPolicy, compilePolicy, recompile } from '../../src/policy/compile.ts';
import {
  DEFAULT_NAMESPACE,
  NAMESPACE_LABEL,
  type Peer,
  type Policy,
  type PortMatch,
  type Requirement,
  type Rule,
} from '../../src/policy/rules.ts';
import type { Bench } from './support.ts';

const RULES = 10_000;
const IDENTITIES = 10_000;
const LOCALS = 1_000;
const NAMESPACES = 100;
const ROUNDS = 7;

interface Shape {
  readonly name: string;
  readonly policies: readonly Policy[];
  readonly rows: readonly IdentityRow[];
}

function row(number: number, labels: Record<string, string>): IdentityRow {
  const identity = securityIdentity(256 + number);
  return { identity, spiffeId: spiffeId(`spiffe://example.org/w${number}`), labels, nodes: [] };
}

const is = (key: string, value: string): Requirement => ({ key, operator: 'In', values: [value] });
const workloads = (...requirements: Requirement[]): Peer => ({ kind: 'workloads', selector: { requirements } });
const tcp = (port: number, last = port): PortMatch => ({ protocol: 6, first: port, last });

function policy(name: string, subject: readonly Requirement[], rules: readonly Partial<Rule>[]): Policy {
  const whole = rules.map(
    (rule, i): Rule => ({
      file: `${name}.yaml`,
      line: i + 1,
      path: `spec.ingress[${i}]`,
      direction: 'ingress',
      action: 'allow',
      peers: 'any',
      ports: 'any',
      mode: undefined,
      ...rule,
    }),
  );
  return {
    file: `${name}.yaml`,
    line: 1,
    kind: 'CiliumNetworkPolicy',
    name,
    namespace: DEFAULT_NAMESPACE,
    enforcement: 'enforce',
    specs: [
      {
        line: 1,
        description: '',
        subject: { kind: 'workloads', selector: { requirements: subject } },
        rules: whole,
        defaultDeny: { ingress: true, egress: whole.some(({ direction }) => direction === 'egress') },
        requires: { ingress: [], egress: [] },
      },
    ],
  };
}

const times = <T>(count: number, make: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => make(i));

/** 1,000 applications of ten identities, each with a policy of ten rules, three of which ask for a proof. */
function applications(): Shape {
  const apps = RULES / 10;
  return {
    name: 'applications',
    rows: times(IDENTITIES, (i) => row(i, { app: `a${i % apps}`, version: `v${Math.floor(i / apps)}` })),
    policies: times(apps, (app) =>
      policy(
        `a${app}`,
        [is('app', `a${app}`)],
        times(10, (i) => ({
          peers: [workloads(is('app', `a${(app * 13 + i * 37 + 1) % apps}`))],
          ports: [i === 8 ? tcp(1_000 + app, 1_100 + app) : tcp(8_000 + i)],
          mode: i < 3 ? ('required' as const) : undefined,
        })),
      ),
    ),
  };
}

/** 10,000 services in 100 namespaces, each with a policy of one rule: mutual authentication with its whole namespace. */
function namespaces(): Shape {
  const at = (i: number) => is(NAMESPACE_LABEL, `n${i % NAMESPACES}`);
  return {
    name: 'namespaces',
    rows: times(IDENTITIES, (i) => row(i, { app: `s${i}`, [NAMESPACE_LABEL]: `n${i % NAMESPACES}` })),
    policies: times(RULES, (i) =>
      policy(
        `s${i}`,
        [is('app', `s${i}`), at(i)],
        [{ peers: [workloads(at(i))], ports: [tcp(443)], mode: 'required' }],
      ),
    ),
  };
}

/** One clusterwide policy for everybody, that names 10,000 peers one by one. */
function baseline(): Shape {
  return {
    name: 'clusterwide',
    rows: times(IDENTITIES, (i) => row(i, { app: `s${i}` })),
    policies: [
      policy(
        'everybody',
        [],
        times(RULES, (i) => ({ peers: [workloads(is('app', `s${i}`))], ports: [tcp(8_000 + (i % 100))] })),
      ),
    ],
  };
}

/** 1,000 applications with ten rules each, of which five speak of addresses outside, with exceptions inside them. */
function addresses(): Shape {
  const apps = RULES / 10;
  const block = (app: number, i: number) => parsePrefix(`10.${(app * 5 + i) % 250}.${(app >> 2) & 0xf0}.0/20`)!;
  const hole = (app: number, i: number) => parsePrefix(`10.${(app * 5 + i) % 250}.${(app >> 2) & 0xf0}.0/28`)!;
  return {
    name: 'addresses',
    rows: times(IDENTITIES, (i) => row(i, { app: `a${i % apps}` })),
    policies: times(apps, (app) =>
      policy(
        `a${app}`,
        [is('app', `a${app}`)],
        times(10, (i) =>
          i < 5
            ? { direction: 'egress', peers: [{ kind: 'cidr', prefix: block(app, i), except: [hole(app, i)] }] }
            : { peers: [workloads(is('app', `a${(app + i) % apps}`))], ports: [tcp(8_000 + i)] },
        ),
      ),
    ),
  };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

function timed<T>(act: () => T): { readonly ms: number; readonly result: T } {
  const begin = process.hrtime.bigint();
  const result = act();
  return { ms: Number(process.hrtime.bigint() - begin) / 1e6, result };
}

/** Each change begins from the same state, so that none is a repetition. */
function changes(compiled: CompiledPolicy, rows: readonly IdentityRow[], locals: readonly SecurityIdentity[]) {
  const guest = rows.find(({ identity }) => !locals.includes(identity))!;
  const known = row(IDENTITIES + 1, { ...guest.labels });
  const stranger = row(IDENTITIES + 2, { ...guest.labels, app: 'never-seen', [NAMESPACE_LABEL]: 'n1' });
  const moved = rows.map((one) => (one === guest ? { ...one, labels: { ...one.labels, app: 's1' } } : one));
  return [
    ['endpoint-comes', () => recompile(compiled, rows, [...locals, guest.identity])],
    ['endpoint-goes', () => recompile(compiled, rows, locals.slice(1))],
    ['identity-comes', () => recompile(compiled, [...rows, known], locals)],
    ['new-kind-of-identity-comes', () => recompile(compiled, [...rows, stranger], locals)],
    ['new-kind-of-endpoint-comes', () => recompile(compiled, [...rows, stranger], [...locals, stranger.identity])],
    ['identity-goes', () => recompile(compiled, rows.slice(0, -1), locals)],
    ['labels-change', () => recompile(compiled, moved, locals)],
  ] as const;
}

export const shapes = [applications, namespaces, baseline, addresses];

export const bench: Bench = {
  name: 'policy',
  async run(emit, progress) {
    for (const make of shapes) {
      const { name, policies, rows } = make();
      const locals = rows.slice(0, LOCALS).map(({ identity }) => identity);
      const compileTimes: number[] = [];
      const tableTimes: number[] = [];
      let compiled = compilePolicy([], [], []);
      for (let round = 0; round < ROUNDS; round++) {
        const compiling = timed(() => compilePolicy(policies, rows, locals));
        const making = timed(() => compiling.result.tables);
        compileTimes.push(compiling.ms + making.ms);
        tableTimes.push(making.ms);
        compiled = compiling.result;
        await new Promise((resolve) => setTimeout(resolve, 1)); // lets go of the tables
      }
      progress(
        `${name}: ${compileTimes.map((ms) => ms.toFixed(0)).join(', ')} ms, tables ${median(tableTimes).toFixed(0)} ms`,
      );
      const first = compileTimes[0]!;
      emit({ name: `policy/${name}/first-compile`, value: first, unit: 'ms', target: 'at most 600', ok: first <= 600 });
      const usual = median(compileTimes);
      emit({ name: `policy/${name}/compile`, value: usual, unit: 'ms', target: 'at most 600', ok: usual <= 600 });
      emit({ name: `policy/${name}/entries`, value: compiled.entryCount, unit: 'entries' });
      for (const [change, act] of changes(compiled, rows, locals)) {
        const ms = median(times(ROUNDS, () => timed(act).ms));
        const writes = Object.values(act().delta).reduce((sum, list) => sum + list.length, 0);
        progress(`${name}: ${change}: ${writes} writes`);
        emit({ name: `policy/${name}/${change}`, value: ms, unit: 'ms', target: 'at most 20', ok: ms <= 20 });
      }
    }
  },
};
