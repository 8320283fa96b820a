import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '../../..');
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'countersign-policy-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function run(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(join(root, 'bin/countersign'), ['policy', ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, NO_COLOR: '1' },
  });
  return { status, stdout, stderr };
}

function json(...args: string[]) {
  const { status, stdout, stderr } = run(...args, '-o', 'json');
  expect(stderr).toBe('');
  expect(stdout.trim().split('\n')).toHaveLength(1);
  return { status, value: JSON.parse(stdout) };
}

function write(name: string, text: string): string {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  return name;
}

const policy = (name: string, selected: string, rules: string, annotations = '') =>
  `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name}${annotations === '' ? '' : `, annotations: {${annotations}}`}}
spec:
  endpointSelector: {matchLabels: {app: ${selected}}}
${rules}
`;

const fromApp = (app: string, more = '') => `    - {fromEndpoints: [{matchLabels: {app: ${app}}}]${more}}`;
const port = (number: number | string, protocol = 'TCP') =>
  `, toPorts: [{ports: [{port: "${number}", protocol: ${protocol}}]}]`;
const REQUIRED = ', authentication: {mode: required}';

const entries = (...apps: string[]) =>
  `apiVersion: countersign.dev/v1alpha1
kind: RegistrationEntries
entries:
${apps.map((app) => `  - {id: ${app}, spiffeId: "spiffe://example.org/${app}", node: node-a, selectors: ["unix:uid:1"], labels: {app: ${app}}}`).join('\n')}
`;

describe('countersign policy lint', () => {
  it('is content with the policies of the tour', () => {
    const { status, stdout, stderr } = run('lint', join(root, 'deploy/examples/policies'));
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '3 policies, no problem\n', stderr: '' });
  });

  it('tells every problem of all files with file, line, field and fix, and leaves with 2', () => {
    write('wrong/a.yaml', policy('a', 'web', '  ingress:\n    - {fromService: [{}]}'));
    write('wrong/b.yaml', policy('b', 'web', `  ingress:\n${fromApp('x', port('80', 'ICMP'))}`));
    const { status, stdout, stderr } = run('lint', 'wrong');
    expect(status).toBe(2);
    expect(stderr).toMatch(/^wrong\/a\.yaml:7: spec\.ingress\[0\]\.fromService: .+; .+$/m);
    expect(stderr).toMatch(/^wrong\/b\.yaml:7: spec\.ingress\[0\]\.toPorts\[0\]\.ports\[0\]\.protocol: .+; .+$/m);
    expect(stdout).toBe('0 policies, 2 problems\n');
    const { status: again, value } = json('lint', 'wrong/a.yaml', 'wrong/b.yaml');
    expect(again).toBe(2);
    expect(value.problems).toMatchObject([
      { file: 'wrong/a.yaml', line: 7 },
      { file: 'wrong/b.yaml', line: 7 },
    ]);
  });

  it('refuses two policies of one name, in whichever files', () => {
    write('twice/a.yaml', policy('same', 'web', `  ingress:\n${fromApp('x')}`));
    write('twice/b.yaml', policy('same', 'api', `  ingress:\n${fromApp('x')}`));
    const { status, value } = json('lint', 'twice/a.yaml', 'twice/b.yaml');
    expect(status).toBe(2);
    expect(value.problems).toMatchObject([{ file: 'twice/b.yaml', line: 1 }]);
  });

  it('says that a path is not there', () => {
    const { status, stderr } = run('lint', 'nowhere');
    expect(status).toBe(2);
    expect(stderr).toMatch(/^nowhere: the file does not exist; /);
  });

  // One run for all of them: each selects workloads of its own.
  const idle: readonly (readonly [name: string, rules: string, line: number, message: RegExp])[] = [
    [
      'a rule that stands twice',
      `  ingress:\n${fromApp('x', port(80))}\n${fromApp('x', port(80))}`,
      8,
      /the same as .*:7 /,
    ],
    [
      'an allowance that a denial covers',
      `  ingress:\n${fromApp('x', port(80))}\n  ingressDeny:\n    - {fromEndpoints: [{}]}`,
      7,
      /can never allow: .*:9 .*ingressDeny\[0\]/,
    ],
    ['an empty rule beside others', `  ingress:\n    - {}\n${fromApp('x')}`, 7, /allows nothing/],
    ['a port list without ports', '  ingress:\n    - {fromEndpoints: [{}], toPorts: [{}]}', 7, /names no port/],
    ['nobody', '  ingress:\n    - {fromEntities: [none]}', 7, /allows nothing/],
    [
      'a mode that nothing asks to switch off',
      '  egress:\n    - {toEndpoints: [{}], authentication: {mode: disabled}}',
      7,
      /disabled has no effect: no other egress rule/,
    ],
    [
      'a mode that a stronger one of the same traffic beats',
      `  ingress:\n${fromApp('x', ', authentication: {mode: disabled}')}\n${fromApp('x', REQUIRED)}`,
      7,
      /disabled has no effect: .*:8 .*required/,
    ],
    [
      'a proof that no address can give',
      `  ingress:\n    - {fromCIDR: [192.0.2.0/24]${REQUIRED}}`,
      7,
      /required is never met/,
    ],
    [
      'labels that nobody has together',
      '  ingress:\n    - {fromEndpoints: [{matchLabels: {app: x}, matchExpressions: [{key: app, operator: In, values: [z]}]}]}',
      7,
      /nobody: no workload has app=x and app=z/,
    ],
  ];
  const fine: readonly (readonly [name: string, rules: string])[] = [
    ['default deny alone', '  ingress: [{}]'],
    ['a denial of a part', `  ingress:\n${fromApp('x')}\n  ingressDeny:\n${fromApp('x', port(80))}`],
    [
      'a narrower rule beside a broader',
      `  ingress:\n${fromApp('x', REQUIRED)}\n${fromApp('x', `${port(80)}, authentication: {mode: disabled}`)}`,
    ],
    [
      'the same rule in the other direction',
      `  ingress:\n${fromApp('x')}\n  egress:\n    - {toEndpoints: [{matchLabels: {app: x}}]}`,
    ],
    [
      'requirements in a rule of their own',
      `  ingress:\n    - {fromRequires: [{matchLabels: {env: prod}}]}\n${fromApp('x')}`,
    ],
  ];
  const fileOf = (name: string) => `idle/${name.replaceAll(' ', '-')}.yaml`;
  let asJson: ReturnType<typeof json>;
  let asText: ReturnType<typeof run>;
  beforeAll(() => {
    for (const [i, [name, rules]] of [...idle, ...fine].entries()) write(fileOf(name), policy(`p${i}`, `w${i}`, rules));
    asJson = json('lint', 'idle');
    asText = run('lint', 'idle');
  });
  const warningsOf = (name: string) =>
    asJson.value.warnings.filter(({ file }: { file: string }) => file === fileOf(name));

  it('leaves with 0 on warnings, and counts them', () => {
    expect(asJson.status).toBe(0);
    expect(asJson.value).toMatchObject({ policies: 14, problems: [] });
    expect(asText).toMatchObject({ status: 0, stdout: '14 policies, no problem, 9 warnings\n' });
  });

  it.each(idle)('warns of %s', (name, _rules, line, message) => {
    expect(warningsOf(name)).toEqual([{ file: fileOf(name), line, message: expect.stringMatching(message) }]);
    expect(asText.stderr).toMatch(new RegExp(`^warning: ${fileOf(name)}:${line}: .+; .+$`, 'm'));
  });

  it.each(fine)('has nothing to say of %s', (name) => {
    expect(warningsOf(name)).toEqual([]);
  });

  it('does not call dead what only a policy that observes denies', () => {
    const observe = 'countersign.dev/enforcement: observe';
    const file = write(
      'fine/observed.yaml',
      [
        policy('p', 'web', `  ingress:\n${fromApp('x')}`),
        policy('q', 'web', '  ingressDeny:\n    - {fromEndpoints: [{}]}', observe),
      ].join('---\n'),
    );
    expect(json('lint', file).value.warnings).toEqual([]);
  });

  it('warns of a proof that is asked of a node', () => {
    const rule = `  ingress:\n${fromApp('x', REQUIRED)}`;
    const file = write(
      'node.yaml',
      policy('n', 'web', rule)
        .replace('kind: CiliumNetworkPolicy', 'kind: CiliumClusterwideNetworkPolicy')
        .replace('endpointSelector', 'nodeSelector'),
    );
    expect(json('lint', file)).toMatchObject({
      status: 0,
      value: { warnings: [{ message: expect.stringMatching(/required is never met: a node has no SVID/) }] },
    });
  });

  it('leaves layer 7 out on request, and says so', () => {
    const file = write(
      'l7.yaml',
      policy('p', 'web', '  ingress:\n    - {toPorts: [{ports: [{port: "80"}], rules: {http: [{method: GET}]}}]}'),
    );
    expect(run('lint', file).status).toBe(2);
    const { status, value } = json('lint', file, '--l7', 'ignore-with-warning');
    expect(status).toBe(0);
    expect(value.warnings[0].message).toMatch(/rules/);
  });
});

describe('countersign policy explain', () => {
  const files = () => {
    const policies = write(
      'explain/policies/web.yaml',
      [
        policy(
          'web',
          'web',
          `  ingress:\n${fromApp('x', `${port(80)}${REQUIRED}`)}\n    - {fromCIDR: [192.0.2.0/24]${REQUIRED}}`,
        ),
        policy('no-x', 'web', `  ingressDeny:\n${fromApp('x', port(22))}`),
        policy('later', 'web', `  ingressDeny:\n${fromApp('y')}`, 'countersign.dev/enforcement: observe'),
        policy('y', 'web', `  ingress:\n${fromApp('y')}\n${fromApp('x', port(22))}`),
      ].join('---\n'),
    );
    return [`--policies`, policies, '--identities', write('explain/entries.yaml', entries('web', 'x', 'y', 'z'))];
  };

  it('shows the rule that allows, what it asks for, and where it stands', () => {
    const { status, value } = json('explain', 'x', 'web', '--port', '80', ...files());
    expect(status).toBe(0);
    expect(value).toMatchObject({
      verdict: 'allow',
      because: 'policy allows it once both sides have proved who they are',
      from: { spiffeId: 'spiffe://example.org/x', labels: { app: 'x' } },
      traffic: 'tcp/80',
      policy: {
        egress: 'allow',
        ingress: 'allow',
        authentication: 'spiffe',
        rule: {
          policy: 'default/web',
          file: 'explain/policies/web.yaml',
          line: 7,
          path: 'spec.ingress[0]',
          direction: 'ingress',
          action: 'allow',
        },
      },
      egress: { because: 'no policy in force says anything of its egress', policies: [], matched: [] },
      ingress: {
        because: expect.stringMatching(
          /^allowed by default\/web spec\.ingress\[0\] .*; authentication required by the same rule$/,
        ),
        policies: ['default/web', 'default/no-x', 'default/later (observes)', 'default/y'],
        matched: [{ policy: 'default/web', mode: 'required' }],
      },
    });
  });

  it('shows that a denial beats what another rule allows', () => {
    const { status, value } = json('explain', 'x', 'web', '--port', '22', ...files());
    expect(status).toBe(1);
    expect(value.because).toMatch(
      /^ingress: denied by default\/no-x .*; a deny beats what default\/y spec\.ingress\[1\]/,
    );
    expect(value.ingress.matched.map((m: { policy: string; action: string }) => `${m.action} ${m.policy}`)).toEqual([
      'deny default/no-x',
      'allow default/y',
    ]);
  });

  it('names the policies that deny by default', () => {
    const { status, value } = json('explain', 'z', 'web', '--port', '80', ...files());
    expect(status).toBe(1);
    expect(value.because).toBe('ingress: no rule allows it, and default/web, default/no-x, default/y deny by default');
    expect(value.policy.rule).toBe('none');
  });

  it('shows what policies that observe would change', () => {
    const { status, value } = json('explain', 'y', 'web', '--port', '80', ...files());
    expect(status).toBe(0);
    expect(value.observed).toMatchObject({
      verdict: 'deny',
      rule: { policy: 'default/later', enforcement: 'observe' },
    });
    expect(run('explain', 'y', 'web', '--port', '80', ...files()).stdout).toMatch(
      /if the policies that observe were in force: deny/,
    );
  });

  it('denies where a proof is asked of an address', () => {
    const { status, value } = json('explain', '192.0.2.7', 'web', '--port', '80', ...files());
    expect(status).toBe(1);
    expect(value).toMatchObject({
      verdict: 'deny',
      because: expect.stringMatching(/only workloads can prove/),
      policy: { ingress: 'allow' },
    });
  });

  it('takes labels for workloads that are in no file', () => {
    const { status, value } = json('explain', 'app=x,env=prod', 'app=web', '--port', '80', ...files().slice(0, 2));
    expect(status).toBe(0);
    expect(value.from).toEqual({ labels: { app: 'x', env: 'prod' } });
  });

  it('says it in words', () => {
    const { stdout } = run('explain', 'x', 'web', '--port', '22', ...files());
    expect(stdout.split('\n')).toEqual([
      'spiffe://example.org/x -> spiffe://example.org/web tcp/22: deny',
      expect.stringMatching(
        /^ingress: denied by default\/no-x spec\.ingressDeny\[0\] \(explain\/policies\/web\.yaml:16\); a deny beats /,
      ),
      'egress of spiffe://example.org/x: allow',
      '  no policy in force says anything of its egress',
      '  policies: none',
      'ingress of spiffe://example.org/web: deny',
      expect.stringMatching(/^ {2}denied by /),
      '  policies: default/web, default/no-x, default/later (observes), default/y',
      expect.stringMatching(/^ {2}deny: default\/no-x spec\.ingressDeny\[0\] /),
      expect.stringMatching(/^ {2}allow: default\/y spec\.ingress\[1\] /),
      '',
    ]);
  });

  it.each([
    [['nobody', 'web'], /nobody is called "nobody"; give/],
    [['x', 'web', '--port', '65536'], /--port 65536: give a number/],
    [['x', 'web', '--protocol', 'gre'], /--protocol gre: there are .*tcp/],
    [['app=', 'web', '--node-labels', 'type'], /"type": write labels as key=value/],
  ])('refuses %j with 2', (args, message) => {
    const { status, stderr } = run('explain', ...args, ...files());
    expect(status).toBe(2);
    expect(stderr).toMatch(message);
  });
});

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
