/** A file of expected verdicts, for a user's CI: what it may say, and what became of each expectation. */
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { protocolNames, protocolNumber } from '../../agent/protocols.ts';
import { checkSchema, parseYamlDocuments, problemsError, readTextFile } from '../../base/config-file.ts';
import type { Problem } from '../../base/yaml-document.ts';
import type { PolicyRule } from '../../policy/compiled.ts';
import type { UnknownParty } from './party.ts';
import { loadPolicySources, loadWorkloads } from './sources.ts';
import { MODE_OF, ruleView } from './words.ts';
import { openWorld, type World } from './world.ts';

const ICMP = ['icmp', 'icmpv6'];

const expectation = z
  .strictObject({
    from: z.string().min(1),
    to: z.string().min(1),
    protocol: z.enum(protocolNames as [string, ...string[]]).default('tcp'),
    /** Message type where the protocol is ICMP. */
    port: z.number().int().min(0).max(65_535).default(0),
    verdict: z.enum(['allow', 'deny']),
    authentication: z.enum(['none', 'required', 'required-connection', 'test-always-fail']).optional(),
    rule: z.string().min(1).optional(),
    observed: z.enum(['allow', 'deny']).optional(),
    description: z.string().max(256).optional(),
  })
  .superRefine((value, context) => {
    if (!ICMP.includes(value.protocol) || value.port <= 255) return;
    const message = `a message type of ${value.protocol} is from 0 to 255; correct it`;
    context.addIssue({ code: 'custom', path: ['port'], message });
  });

const schema = z.strictObject({
  apiVersion: z.literal('countersign.dev/v1alpha1'),
  kind: z.literal('PolicyTest'),
  /** Files or folders, relative to this file. */
  policies: z.array(z.string().min(1)).min(1),
  identities: z.string().min(1).optional(),
  nodeLabels: z.record(z.string(), z.string()).optional(),
  l7: z.enum(['refuse', 'ignore-with-warning']).default('refuse'),
  expect: z.array(expectation).min(1).max(100_000),
});
export const policyTestSchema = schema;
type Expectation = z.infer<typeof expectation>;

interface Said {
  readonly verdict: 'allow' | 'deny';
  readonly authentication?: string | undefined;
  readonly rule?: string | undefined;
  readonly observed?: string | undefined;
}

export interface TestResult {
  readonly ok: boolean;
  readonly line: number;
  readonly name: string;
  /** Only what was asked for. */
  readonly expected: Said;
  readonly got: Said & { readonly rule: string };
  readonly decidedBy: ReturnType<typeof ruleView>;
  readonly because: { readonly verdict: string; readonly egress: string; readonly ingress: string };
}

/** @throws CountersignError bad-input: the file, its policies or its identities are not right, or an expectation names nobody */
export function runTestFile(path: string): TestResult[] {
  const document = readTestFile(path);
  const beside = (name: string) => resolve(dirname(path), name);
  const { value } = document;
  const workloads = loadWorkloads(value.identities === undefined ? undefined : beside(value.identities));
  const sources = loadPolicySources(value.policies.map(beside), value.l7);
  const asked: { line: number; expected: Expectation; from: string; to: string }[] = [];
  const names: string[] = [];
  value.expect.forEach((expected, i) => {
    asked.push({ line: document.lineOf(['expect', i]), expected, from: expected.from, to: expected.to });
    names.push(expected.from, expected.to);
  });
  const problems: Problem[] = [];
  const world = openWorld({
    policies: sources.policies,
    workloads,
    names,
    nodeLabels: value.nodeLabels,
    unknown(index, problem: UnknownParty) {
      const field = ['expect', index >> 1, index % 2 === 0 ? 'from' : 'to'];
      problems.push({ file: path, line: document.lineOf(field), path: field, message: problem.message });
    },
  });
  if (problems.length > 0) throw problemsError(problems);
  return asked.map(({ line, expected }) => judge(world, line, expected));
}

function readTestFile(path: string) {
  const documents = parseYamlDocuments(path, readTextFile(path));
  const [document, second] = documents;
  const problem = (line: number | undefined, message: string) =>
    problemsError([{ file: path, line, path: [], message }]);
  if (document === undefined) throw problem(undefined, 'the file is empty; write a PolicyTest into it');
  if (second !== undefined) throw problem(second.line, 'a second document begins here; a test file holds one');
  const checked = checkSchema(document, schema);
  if (!checked.ok) throw problemsError(checked.error);
  return { value: checked.value, lineOf: document.lineOf };
}

function judge(world: World, line: number, expected: Expectation): TestResult {
  const protocol = protocolNumber(expected.protocol)!;
  const answer = world.ask(expected.from, expected.to, protocol, expected.port);
  const rule = world.rules[answer.inForce.rule];
  const got = {
    verdict: answer.inForce.verdict,
    authentication: MODE_OF[answer.inForce.authType],
    rule: nameOf(rule),
    observed: answer.observed.verdict,
  };
  const { verdict, authentication, rule: policy, observed } = expected;
  const wanted = Object.fromEntries(
    Object.entries({ verdict, authentication, rule: policy, observed }).filter(([, text]) => text !== undefined),
  ) as unknown as Said;
  const port = expected.port === 0 && !ICMP.includes(expected.protocol) ? '' : `/${expected.port}`;
  return {
    ok: Object.entries(wanted).every(([field, text]) => got[field as keyof Said] === text),
    line,
    name: expected.description ?? `${expected.from} -> ${expected.to} ${expected.protocol}${port} ${verdict}`,
    expected: wanted,
    got,
    decidedBy: ruleView(rule),
    because: { egress: answer.egress.because, ingress: answer.ingress.because, verdict: answer.because },
  };
}

function nameOf(rule: PolicyRule | undefined): string {
  return rule === undefined || rule.policy === '' ? 'none' : rule.policy;
}
