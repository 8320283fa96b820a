/** What the offline policy commands do, print and leave as exit status. Loaded only when one of them is asked for. */
import { protocolNames, protocolNumber } from '../../agent/protocols.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import type { Labels } from '../../model/identity.ts';
import type { L7Handling } from '../../policy/grammar/parse.ts';
import { lintPolicies } from '../../policy/lint.ts';
import { type Format, printJson } from '../output.ts';
import { diffReport, diffText } from './diff-report.ts';
import { explainOffline, explainText } from './explain-report.ts';
import { parseLabels } from './party.ts';
import { loadPolicySources, loadWorkloads, problemText, readPolicies } from './sources.ts';
import { runTestFile } from './test-file.ts';
import { tapOf } from './test-report.ts';

interface PolicyOptions {
  readonly output: Format;
  readonly l7: L7Handling;
}

interface NodeOptions extends PolicyOptions {
  readonly nodeLabels?: string;
}

const nodeLabelsOf = ({ nodeLabels }: NodeOptions): Labels | undefined =>
  nodeLabels === undefined ? undefined : parseLabels(nodeLabels);

function warnOnStderr(warnings: readonly { file: string; line: number; message: string }[]): void {
  for (const warning of warnings) process.stderr.write(`warning: ${problemText(warning)}\n`);
}

const counted = (n: number, one: string, many: string) => `${n} ${n === 1 ? one : many}`;

export function lint(paths: string[], { output, l7 }: PolicyOptions): void {
  const { found, problems } = readPolicies(paths, l7);
  const warnings = problems.length > 0 ? found.warnings : [...found.warnings, ...lintPolicies(found.policies)];
  if (output === 'json') printJson({ policies: found.policies.length, problems, warnings });
  else {
    for (const problem of problems) process.stderr.write(`${problemText(problem)}\n`);
    warnOnStderr(warnings);
    const policies = counted(found.policies.length, 'policy', 'policies');
    const said = problems.length === 0 ? 'no problem' : counted(problems.length, 'problem', 'problems');
    const warned = warnings.length === 0 ? '' : `, ${counted(warnings.length, 'warning', 'warnings')}`;
    console.log(`${policies}, ${said}${warned}`);
  }
  if (problems.length > 0) process.exitCode = EXIT.badInput;
}

interface ExplainOptions extends NodeOptions {
  readonly policies: string[];
  readonly identities?: string;
  readonly port: string;
  readonly protocol: string;
}

export function explain(from: string, to: string, options: ExplainOptions): void {
  const port = Number(options.port);
  if (!/^\d+$/.test(options.port) || port > 65_535)
    throw new CountersignError('bad-input', `--port ${options.port}: give a number from 0 to 65535`);
  const protocol = protocolNumber(options.protocol);
  if (protocol === undefined)
    throw new CountersignError('bad-input', `--protocol ${options.protocol}: there are ${protocolNames.join(', ')}`);
  const sources = loadPolicySources(options.policies, options.l7);
  const workloads = loadWorkloads(options.identities);
  const nodeLabels = nodeLabelsOf(options);
  const report = explainOffline({ sources, workloads, nodeLabels, from, to, protocol, port });
  if (options.output === 'json') printJson(report);
  else {
    warnOnStderr(sources.warnings);
    console.log(explainText(report));
  }
  if (report.verdict === 'deny') process.exitCode = EXIT.no;
}

export function diff(before: string, after: string, options: NodeOptions & { identities: string }): void {
  const [old, now] = [loadPolicySources([before], options.l7), loadPolicySources([after], options.l7)];
  const report = diffReport(old.policies, now.policies, loadWorkloads(options.identities), nodeLabelsOf(options));
  if (options.output === 'json') printJson(report);
  else console.log(diffText(report));
  if (report.changes.length > 0) process.exitCode = EXIT.no;
}

export function test(file: string, { output }: { output: Format }): void {
  const results = runTestFile(file);
  const failed = results.filter(({ ok }) => !ok).length;
  if (output === 'json') printJson({ file, passed: results.length - failed, failed, results });
  else console.log(tapOf(file, results));
  if (failed > 0) process.exitCode = EXIT.no;
}
