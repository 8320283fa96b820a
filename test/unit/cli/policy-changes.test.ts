/** `countersign policy diff` and `test`, as processes: what a change means, and whether policies say what is expected. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { entries, fromApp, json, policy, port, REQUIRED, root, run, write } from './policy-files.ts';

describe('countersign policy diff', () => {
  const identities = () => write('diff/entries.yaml', entries('web', 'x', 'y', 'z'));

  it('is silent about what only looks different', () => {
    const a = write(
      'diff/a1.yaml',
      policy('p', 'web', `  ingress:\n${fromApp('x', port(80))}\n${fromApp('y', port(80))}`),
    );
    const b = write(
      'diff/b1.yaml',
      policy(
        'q',
        'web',
        `  ingress:\n    - {fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [x, "y"]}]}]${port(80)}}`,
      ),
    );
    expect(json('diff', a, b, '--identities', identities())).toEqual({
      status: 0,
      value: { workloads: 4, pairs: { changed: 0, opened: 0, closed: 0, authentication: 0 }, changes: [] },
    });
    expect(run('diff', a, b, '--identities', identities()).stdout).toBe(
      'no verdict changes between 4 workloads and everybody else\n',
    );
  });

  it('groups who changes alike, and names the traffic', () => {
    const a = write(
      'diff/a2.yaml',
      policy('p', 'web', `  ingress:\n${fromApp('x', port(80))}\n${fromApp('y', port(80))}`),
    );
    const b = write(
      'diff/b2.yaml',
      policy(
        'p',
        'web',
        `  ingress:\n${fromApp('x', `${port(80)}${REQUIRED}`)}\n${fromApp('y', `${port(80)}${REQUIRED}`)}\n    - {fromEndpoints: [{}], toPorts: [{ports: [{port: "8000", endPort: 8010, protocol: TCP}]}]}`,
      ),
    );
    const { status, value } = json('diff', a, b, '--identities', identities());
    expect(status).toBe(1);
    expect(value.pairs).toEqual({ changed: 4, opened: 4, closed: 0, authentication: 2 });
    expect(value.changes).toEqual([
      {
        from: ['web', 'z'],
        to: ['web'],
        verdicts: [
          {
            traffic: ['tcp/8000-8010'],
            old: { verdict: 'deny', authentication: 'none' },
            new: { verdict: 'allow', authentication: 'none' },
          },
        ],
      },
      {
        from: ['x', 'y'],
        to: ['web'],
        verdicts: [
          {
            traffic: ['tcp/80'],
            old: { verdict: 'allow', authentication: 'none' },
            new: { verdict: 'allow', authentication: 'required' },
          },
          {
            traffic: ['tcp/8000-8010'],
            old: { verdict: 'deny', authentication: 'none' },
            new: { verdict: 'allow', authentication: 'none' },
          },
        ],
      },
    ]);
    const { stdout } = run('diff', a, b, '--identities', identities());
    expect(stdout).toContain(
      'x, y -> web\n  tcp/80: allow => allow, authentication required\n  tcp/8000-8010: deny => allow\n',
    );
    expect(stdout).toContain('4 pairs change: 4 opened, 0 closed, 2 in authentication\n');
  });

  it('tells addresses apart where either side does, and hosts from workloads', () => {
    const a = write('diff/a3.yaml', policy('p', 'web', '  egress:\n    - {toCIDR: [10.0.0.0/8]}'));
    const b = write(
      'diff/b3.yaml',
      policy(
        'p',
        'web',
        '  egress:\n    - {toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}\n    - {toEntities: [host]}',
      ),
    );
    const { value } = json('diff', a, b, '--identities', identities());
    expect(value.changes.map(({ from, to }: { from: string[]; to: string[] }) => [from, to])).toEqual([
      [['web'], ['host']],
      [['web'], ['10.96.0.0/12']],
    ]);
    expect(value.changes[1].verdicts).toEqual([
      {
        traffic: ['everything'],
        old: { verdict: 'allow', authentication: 'none' },
        new: { verdict: 'deny', authentication: 'none' },
      },
    ]);
  });

  it('sees a port that is known by its name only', () => {
    const named = write(
      'diff/named.yaml',
      `apiVersion: countersign.dev/v1alpha1
kind: RegistrationEntries
entries:
  - {id: web, spiffeId: "spiffe://example.org/web", node: node-a, selectors: ["unix:uid:1"], labels: {app: web}, ports: [{name: http, port: 8080}]}
`,
    );
    const a = write(
      'diff/a4.yaml',
      policy('p', 'web', '  ingress:\n    - {toPorts: [{ports: [{port: http, protocol: TCP}]}]}'),
    );
    const b = write('diff/b4.yaml', policy('p', 'web', '  ingress: [{}]'));
    const { value } = json('diff', a, b, '--identities', named);
    expect(value.changes[0].verdicts[0].traffic).toEqual(['tcp/8080']);
    expect(value.pairs.closed).toBe(4);
  });

  it('leaves with 2 when one of the two is not right', () => {
    const good = write('diff/good.yaml', policy('p', 'web', '  ingress: [{}]'));
    const bad = write('diff/bad.yaml', 'kind: Secret\n');
    expect(run('diff', good, bad, '--identities', identities())).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/bad\.yaml:1: kind: /),
    });
  });
});

describe('countersign policy test', () => {
  const test = (expectations: string, more = '') => `apiVersion: countersign.dev/v1alpha1
kind: PolicyTest
policies: [web.yaml]
identities: entries.yaml
${more}expect:
${expectations}
`;
  const expectation = (text: string) => `  - {${text}}`;
  const prepare = (text: string) => {
    write('ci/web.yaml', policy('web', 'web', `  ingress:\n${fromApp('x', `${port(80)}${REQUIRED}`)}`));
    write('ci/entries.yaml', entries('web', 'x'));
    return write('ci/test.yaml', text);
  };

  it('passes on the example that comes with the policies of the tour', () => {
    const { status, stdout } = run('test', join(root, 'deploy/examples/policy-test.yaml'));
    expect(status).toBe(0);
    expect(stdout).toMatch(/^TAP version 14\n1\.\.9\nok 1 - the frontend calls/);
    expect(stdout).not.toMatch(/not ok/);
  });

  it('passes on the example of policies for the nodes themselves', () => {
    const { status, stdout } = run('test', join(root, 'deploy/examples/node-policy-test.yaml'));
    expect(status).toBe(0);
    expect(stdout).toMatch(/^TAP version 14\n1\.\.7\nok 1 - an operator logs in/);
    expect(stdout).not.toMatch(/not ok/);
  });

  it('shows what was expected, what is, why and where, and leaves with 1', () => {
    const file = prepare(
      test(
        [
          expectation('from: x, to: web, port: 80, verdict: allow, authentication: none'),
          expectation('from: x, to: web, port: 81, verdict: deny'),
          expectation('from: x, to: web, port: 80, verdict: deny, rule: default/other'),
        ].join('\n'),
      ),
    );
    const { status, stdout } = run('test', file);
    expect(status).toBe(1);
    const lines = stdout.split('\n');
    expect(lines.slice(0, 5)).toEqual([
      'TAP version 14',
      '1..3',
      'not ok 1 - x -> web tcp/80 allow',
      '  ---',
      '  at: "ci/test.yaml:6"',
    ]);
    expect(lines).toContain('  expected: "verdict allow, authentication none"');
    expect(lines).toContain('  got: "verdict allow, authentication required"');
    expect(lines).toContain('ok 2 - x -> web tcp/81 deny');
    expect(lines).toContain('  got: "verdict allow, rule default/web"');
    expect(stdout).toMatch(/ {2}rule: "\S*ci\/web\.yaml:7"/);
    expect(lines.at(-2)).toBe('# 1 passed, 2 failed');
    const { status: again, value } = json('test', file);
    expect(again).toBe(1);
    expect(value).toMatchObject({
      file,
      passed: 1,
      failed: 2,
      results: [
        { ok: false, line: 6, got: { verdict: 'allow', authentication: 'required', rule: 'default/web' } },
        { ok: true },
        { ok: false },
      ],
    });
  });

  it.each([
    [
      'an unknown field',
      test(expectation('from: x, to: web, verdikt: deny')),
      /ci\/test\.yaml:6: expect\[0\]\.verdikt: .+; .+/,
    ],
    [
      'a verdict that is none',
      test(expectation('from: x, to: web, verdict: drop')),
      /ci\/test\.yaml:6: expect\[0\]\.verdict: .+; .+/,
    ],
    [
      'an unknown workload',
      test(expectation('from: nobody, to: web, verdict: deny')),
      /ci\/test\.yaml:6: expect\[0\]\.from: nobody is called "nobody"; give/,
    ],
    [
      'a message type beyond 255',
      test(expectation('from: x, to: web, protocol: icmp, port: 256, verdict: deny')),
      /expect\[0\]\.port: .+; .+/,
    ],
    ['no expectation', test('').replace('expect:\n', 'expect: []'), /ci\/test\.yaml:5: expect: /],
    [
      'another kind',
      test(expectation('from: x, to: web, verdict: deny')).replace('PolicyTest', 'PolicyTests'),
      /ci\/test\.yaml:2: kind: /,
    ],
    [
      'policies that are not there',
      test(expectation('from: x, to: web, verdict: deny')).replace('web.yaml', 'gone.yaml'),
      /gone\.yaml: the file does not exist; /,
    ],
  ])('refuses %s by field and fix, and leaves with 2', (_name, text, message) => {
    const { status, stdout, stderr } = run('test', prepare(text));
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });

  it('can expect what policies that observe would say, and what selects the node itself', () => {
    write(
      'ci/more.yaml',
      [
        policy('later', 'web', `  ingressDeny:\n${fromApp('x')}`, 'countersign.dev/enforcement: observe'),
        `apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec:
  nodeSelector: {matchLabels: {type: worker}}
  ingress: [{toPorts: [{ports: [{port: "22", protocol: TCP}]}]}]
`,
      ].join('---\n'),
    );
    const text = test(
      [
        expectation('from: x, to: web, port: 80, verdict: allow, observed: deny'),
        expectation('from: world, to: host, port: 22, verdict: allow, rule: nodes'),
        expectation('from: world, to: host, port: 23, verdict: deny'),
      ].join('\n'),
      'nodeLabels: {type: worker}\n',
    ).replace('[web.yaml]', '[web.yaml, more.yaml]');
    expect(run('test', prepare(text))).toMatchObject({ status: 0 });
  });
});
