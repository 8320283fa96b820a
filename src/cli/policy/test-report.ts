/** Results of `countersign policy test` as the Test Anything Protocol, version 14, which CI systems read and people can. */
import type { TestResult } from './test-file.ts';

export function tapOf(file: string, results: readonly TestResult[]): string {
  const points = results.flatMap((result, i) => {
    const point = `${result.ok ? 'ok' : 'not ok'} ${i + 1} - ${quoted(result.name)}`;
    return result.ok ? [point] : [point, ...details(file, result).map((line) => `  ${line}`)];
  });
  const failed = results.filter(({ ok }) => !ok).length;
  return [
    'TAP version 14',
    `1..${results.length}`,
    ...points,
    `# ${results.length - failed} passed, ${failed} failed`,
  ].join('\n');
}

/** A "#" would begin a directive. */
function quoted(text: string): string {
  return text.replace(/[\\#]/g, '\\$&').replace(/\s+/g, ' ');
}

function details(file: string, { line, expected, got, because, decidedBy }: TestResult): string[] {
  const fields = Object.keys(expected) as (keyof typeof expected)[];
  const shown = (said: Partial<Record<string, string | undefined>>) =>
    fields.map((field) => `${field} ${said[field]}`).join(', ');
  const at = decidedBy === 'none' ? 'none' : `${decidedBy.file}:${decidedBy.line}`;
  const yaml = {
    at: `${file}:${line}`,
    expected: shown({ ...expected }),
    got: shown({ ...got }),
    because: because.verdict,
    egress: because.egress,
    ingress: because.ingress,
    rule: at,
  };
  return ['---', ...Object.entries(yaml).map(([key, value]) => `${key}: ${JSON.stringify(value)}`), '...'];
}
