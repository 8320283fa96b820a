/** `countersign policy lint` and `explain`, as processes: what they say of files, without an agent. */
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { entries, fromApp, json, policy, port, REQUIRED, root, run, write } from './policy-files.ts';

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
