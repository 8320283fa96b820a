import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Demands, type Step } from './step.ts';

/** The last file of events in a log directory. */
const eventFile = (dir: string) =>
  join(
    dir,
    readdirSync(dir)
      .filter((f) => f.endsWith('.jsonl'))
      .sort()
      .at(-1)!,
  );

function edit(dir: string, change: (lines: string[]) => void): void {
  const file = eventFile(dir);
  const lines = readFileSync(file, 'utf8').split('\n');
  change(lines);
  writeFileSync(file, lines.join('\n'));
}

const tampers: { name: string; change: (lines: string[]) => void }[] = [
  {
    name: 'byte_changed',
    change: (lines) => {
      lines[1] = lines[1]!.replace(/"kind":"(.)/, (_, c: string) => `"kind":"${c === 'x' ? 'y' : 'x'}`);
    },
  },
  {
    name: 'line_removed',
    change: (lines) => {
      lines.splice(1, 1);
    },
  },
  {
    name: 'lines_swapped',
    change: (lines) => {
      [lines[1], lines[2]] = [lines[2]!, lines[1]!];
    },
  },
];

export const audit: Step = {
  name: 'audit',
  shows: 'the audit log verifies offline; a copy with one byte changed, one line removed or two lines swapped does not',
  async run(stage) {
    const demands = new Demands();
    const saw: string[] = [];
    const bundle = join(stage.dir, 'server/bundle.pem');
    const dir = join(stage.dir, 'node-a/audit');
    const whole = await stage.cliRaw('audit', 'verify', dir, '--bundle', bundle, '-o', 'json');
    const report = JSON.parse(whole.stdout || '{}') as { events?: number; problem?: string };
    demands.that(whole.status === 0, `the log itself is refused: ${report.problem ?? whole.stderr}`);
    saw.push(`${dir}: ${report.events} events, whole`);
    const refused: string[] = [];
    for (const { name, change } of tampers) {
      const copy = join(stage.dir, `audit-${name}`);
      rmSync(copy, { recursive: true, force: true });
      cpSync(dir, copy, { recursive: true });
      edit(copy, change);
      const verdict = await stage.cliRaw('audit', 'verify', copy, '--bundle', bundle, '-o', 'json');
      const said = JSON.parse(verdict.stdout || '{}') as { problem?: string };
      demands.that(verdict.status === 1, `${name}: exit status ${verdict.status}, not 1`);
      if (verdict.status === 1) refused.push(name);
      saw.push(`${name}: ${said.problem}`);
    }
    return demands.result(
      { events: report.events ?? 0, accepted: whole.status === 0, refused: refused.join(',') },
      saw,
    );
  },
};
