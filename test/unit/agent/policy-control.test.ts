import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PolicyControl, type PolicyControlOptions } from '../../../src/agent/policy-control.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { DatapathSignal, PolicyDelta, PolicyTables } from '../../../src/model/datapath.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cs-policy-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const row = (identity: number, app: string): IdentityRow => ({
  identity: securityIdentity(identity),
  spiffeId: spiffeId(`spiffe://example.org/${app}`),
  labels: { app },
  nodes: [],
});
const [frontend, backend, intruder] = [row(256, 'frontend'), row(257, 'backend'), row(258, 'intruder')];

const CILIUM = { apiVersion: 'cilium.io/v2', kind: 'CiliumNetworkPolicy' };
const policyFile = (name: string, rest: string, metadata = '', { apiVersion, kind } = CILIUM) =>
  writeFileSync(
    join(dir, `${name}.yaml`),
    `apiVersion: ${apiVersion}
kind: ${kind}
metadata:
  name: ${name}
${metadata}spec:
${rest}`,
  );
const toBackend = `  endpointSelector: { matchLabels: { app: backend } }
  ingress:
    - fromEndpoints: [{ matchLabels: { app: frontend } }]
      authentication: { mode: required }
`;

function stage(change: Partial<PolicyControlOptions> = {}) {
  const calls: ({ flip: PolicyTables } | { delta: PolicyDelta })[] = [];
  const events: AuditEvent[] = [];
  const told: (ReadonlySet<number> | undefined)[] = [];
  const world = { rows: [frontend, backend] as readonly IdentityRow[], locals: [backend.identity], fail: false };
  const control = new PolicyControl({
    directory: dir,
    l7: 'refuse',
    nodeLabels: {},
    datapath: {
      setPolicy: (flip) => void calls.push({ flip }),
      updatePolicy: (delta) => {
        if (world.fail) throw new Error('E2BIG');
        calls.push({ delta });
      },
    },
    identities: { rows: () => world.rows },
    locals: () => world.locals,
    changed: (of) => void told.push(of),
    audit: { emit: (event) => void events.push(event) },
    log: createLogger('test', 'silent'),
    ...change,
  });
  return { control, calls, events, told, world, [Symbol.dispose]: () => control.close() };
}
const kinds = (calls: object[]) => calls.map((call) => Object.keys(call)[0]);

describe('policies on their way to the kernel', () => {
  test('the first time and when files change the whole is written, for other identities only what they concern', async () => {
    policyFile('backend', toBackend);
    using s = stage();
    s.control.apply();
    s.world.rows = [frontend, backend, intruder];
    s.control.apply(new Set([intruder.identity]));
    expect(kinds(s.calls)).toEqual(['flip', 'delta']);
    const { delta } = s.calls[1] as { delta: PolicyDelta };
    expect(delta.putClasses.map(({ identity }) => identity)).toContain(intruder.identity);
    expect(s.told).toEqual([undefined, new Set([intruder.identity])]);
    expect(s.control.decide(intruder.identity, backend.identity, 6, 80).verdict).toBe('deny');
    expect(s.control.requiredPeers()).toEqual([frontend.identity]);

    policyFile('more', toBackend.replace('app: frontend', 'app: intruder'));
    await s.control.reload();
    expect(kinds(s.calls)).toEqual(['flip', 'delta', 'flip']);
    expect(s.control.decide(intruder.identity, backend.identity, 6, 80)).toMatchObject({
      verdict: 'allow',
      authType: 'spiffe',
    });
    expect(s.events.map((e) => e.kind)).toEqual(['policy.changed']);
  });

  test('who is asked for a proof of each connection is a required peer like any other', () => {
    const each = toBackend.replace('mode: required', 'mode: required, scope: connection');
    policyFile('backend', each, '', { apiVersion: 'countersign.dev/v1alpha1', kind: 'AuthenticationPolicy' });
    using s = stage();
    s.control.apply();
    expect(s.control.requiredPeers()).toEqual([frontend.identity]);
    expect(s.control.authTypesOf(frontend.identity, backend.identity)).toEqual(['spiffe-connection']);
  });

  test('when the kernel takes a change in part only, the next one writes the whole', () => {
    policyFile('backend', toBackend);
    using s = stage();
    s.control.apply();
    s.world.fail = true;
    s.world.rows = [frontend, backend, intruder];
    expect(() => s.control.apply()).toThrow('E2BIG');
    s.world.fail = false;
    s.control.apply();
    expect(kinds(s.calls)).toEqual(['flip', 'flip']);
  });

  test('the kernel is told in which directions a policy selects this node, by its labels', async () => {
    const node = (role: string, rules: string) =>
      writeFileSync(
        join(dir, 'node.yaml'),
        `apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: { name: node }
spec:
  nodeSelector: { matchLabels: { role: ${role} } }
  ${rules}
`,
      );
    node('edge', 'ingress: [{ toPorts: [{ ports: [{ port: "22", protocol: TCP }] }] }]');
    using s = stage({ nodeLabels: { role: 'edge' } });
    s.control.apply();
    node('edge', 'egress: [{}]');
    await s.control.reload();
    node('other', 'egress: [{}]');
    await s.control.reload();
    expect(s.calls.map((call) => 'flip' in call && call.flip.host)).toEqual([
      { egress: false, ingress: true },
      { egress: true, ingress: false },
      { egress: false, ingress: false },
    ]);
  });

  test('files with a problem change nothing, say so, and are forgotten when they are mended', async () => {
    policyFile('backend', toBackend);
    using s = stage();
    s.control.apply();
    policyFile('backend', '  endpointSelector: {}\n  ingres: []\n');
    expect(await s.control.reload()).toMatchObject({ policies: 1, problem: expect.stringContaining('ingres') });
    expect(kinds(s.calls)).toEqual(['flip']);
    expect(s.events).toMatchObject([{ kind: 'policy.refused', reason: 'POLICY_INVALID' }]);
    policyFile('backend', toBackend.replace('required', 'disabled'));
    expect(await s.control.reload()).not.toHaveProperty('problem');
    expect(kinds(s.calls)).toEqual(['flip', 'flip']);
  });
});

describe('the rule that decided about a packet', () => {
  const signal = {
    direction: 'egress',
    localIdentity: frontend.identity,
    remoteIdentity: backend.identity,
    protocol: 6,
    localPort: 40_000,
    remotePort: 80,
    authType: 'spiffe',
    rule: 0,
  } as DatapathSignal;
  test.each([
    ['the kernel names it', { rule: 1, authType: 'none' }, true],
    ["the receiver's policy asks for the proof, seen at the sender", {}, true],
    [
      'the same, seen at the receiver',
      {
        direction: 'ingress',
        localIdentity: backend.identity,
        remoteIdentity: frontend.identity,
        localPort: 80,
        remotePort: 40_000,
      },
      true,
    ],
    ['none allowed it', { authType: 'none' }, false],
    ['none asks for this proof any more', { authType: 'test-always-fail' }, false],
  ] as const)('%s', (_, change, isNamed) => {
    policyFile('backend', toBackend);
    using s = stage();
    s.control.apply();
    const told = s.control.ruleOf({ ...signal, ...change } as DatapathSignal);
    if (isNamed) expect(told).toMatch(/backend\.yaml:\d+ default\/backend$/);
    else expect(told).toBeUndefined();
  });
});

describe('what is shown of policies', () => {
  test('in which directions they select this node, by its labels', () => {
    const clusterwide = { ...CILIUM, kind: 'CiliumClusterwideNetworkPolicy' };
    policyFile('nodes', '  nodeSelector: { matchLabels: { role: worker } }\n  ingress: [{}]\n', '', clusterwide);
    using worker = stage({ nodeLabels: { role: 'worker' } });
    worker.control.apply();
    expect(worker.control.view().node).toEqual(['ingress']);
    using other = stage();
    other.control.apply();
    expect(other.control.view().node).toEqual([]);
  });

  test('those that only observe are named, in the rules too, and decisions say both', () => {
    policyFile('backend', toBackend, '  annotations: { countersign.dev/enforcement: observe }\n');
    using s = stage();
    s.world.rows = [frontend, backend, intruder];
    s.control.apply();
    expect(s.control.view()).toMatchObject({ observing: ['default/backend'], warnings: [] });
    expect(s.control.rules()).toMatchObject([{ rule: 1, policy: 'default/backend', enforcement: 'observe' }]);
    expect(s.control.decide(intruder.identity, backend.identity, 6, 80)).toMatchObject({
      verdict: 'allow',
      observed: { verdict: 'deny' },
    });
  });

  test('rules of layer 7 are refused, or on request passed over with a warning that everybody can see', () => {
    policyFile(
      'http',
      `${toBackend}      toPorts:
        - ports: [{ port: "80", protocol: TCP }]
          rules: { http: [{ method: GET }] }
`,
    );
    expect(() => stage()).toThrow(/http\.yaml:\d+.*http/s);
    using s = stage({ l7: 'ignore-with-warning' });
    expect(s.control.view().warnings).toEqual([expect.stringMatching(/http\.yaml:\d+: .*/)]);
    expect(s.control.warnings()).toHaveLength(1);
    expect(s.events).toMatchObject([{ kind: 'policy.warning', policy: expect.stringMatching(/http\.yaml:\d+$/) }]);
  });
});
