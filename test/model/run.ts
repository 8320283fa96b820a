/**
 * Checks the models of leases and fences: each must hold over its whole state space, and none may hold once a rule is taken away. One
 * TAP line for each; `--write` puts what was seen into README.md. Needs Debian's spin and gcc.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { againstTraces } from './against-traces.ts';
import { BASES, HAZARDS, REACHED, REDUNDANT, REMOVED, type Row } from './rows.ts';
import { type Checked, check } from './spin.ts';

const WORKERS = 2;
/** A machine that does much else besides is several times slower than one that does not. */
const TIMEOUT_MS = 900_000;
const readme = join(import.meta.dirname, 'README.md');

interface Seen {
  readonly row: Row;
  readonly checked: Checked;
}

function nameOf(row: Row): string {
  const what = row.without.length > 0 ? `without ${row.without.join(', ')}` : row.words;
  return `${row.model}: ${what}`;
}

const outcome = ({ broken }: Checked) => (broken === 'P0' ? 'reached' : (broken ?? 'holds'));

/** Why the row is not as it must be; undefined: it is. */
function fault(row: Row, checked: Checked): string | undefined {
  if (row.breaks !== undefined) {
    const found = checked.broken === 'P1' || checked.broken === 'P2' ? 'packet' : checked.broken;
    if (checked.errors > 0 && found === row.breaks) return undefined;
    return checked.errors > 0 ? `${checked.broken} broke, not ${row.breaks}` : `not found in ${checked.states} states`;
  }
  if (checked.errors !== 0) return `${checked.broken ?? 'an error'}: ${checked.steps.join(' | ')}`;
  return checked.exhausted ? undefined : 'the state space was not exhausted';
}

function table(seen: readonly Seen[]): string {
  const line = ({ row, checked }: Seen) => {
    const cells = [
      row.model,
      row.without.join(' + ') || row.size.join(' ') || '-',
      checked.broken ?? 'holds',
      row.words,
    ];
    const cost =
      row.breaks === undefined ? `${checked.states.toLocaleString('en')} | ${checked.seconds.toFixed(1)}` : '';
    return `| ${cells.join(' | ')} |${cost === '' ? '' : ` ${cost} |`}`;
  };
  const of = (rows: readonly Row[]) =>
    seen
      .filter(({ row }) => rows.includes(row))
      .map(line)
      .join('\n');
  const costs = 'states | seconds |\n| --- | --- | --- | --- | --- | --- |\n';
  return [
    `### What holds\n\n| model | size | | what | ${costs}${of(BASES)}`,
    `### A rule taken away\n\n| model | without | breaks | the packet that slips through |\n| --- | --- | --- | --- |\n${of(REMOVED)}`,
    `### One of several lines\n\n| model | without | | why | ${costs}${of(REDUNDANT)}`,
    `### What each model can reach\n\n| model | with | | |\n| --- | --- | --- | --- |\n${of(REACHED)}`,
    `### What no rule stops\n\n| model | with | breaks | |\n| --- | --- | --- | --- |\n${of(HAZARDS)}`,
  ].join('\n\n');
}

async function main(): Promise<number> {
  const args = process.argv.slice(2);
  const wanted = args.filter((arg) => !arg.startsWith('--'));
  const all = [...BASES, ...REMOVED, ...REDUNDANT, ...REACHED, ...HAZARDS];
  const rows = all.filter((row) => wanted.length === 0 || wanted.some((word) => nameOf(row).includes(word)));
  const seen: Seen[] = [];
  let number = 0;
  let failed = 0;
  const say = (ok: boolean, text: string) => {
    number += 1;
    if (!ok) failed += 1;
    console.log(`${ok ? 'ok' : 'not ok'} ${number} - ${text}`);
  };
  const queue = [...rows];
  const work = async () => {
    for (let row = queue.shift(); row !== undefined; row = queue.shift()) {
      const checked = await check(row, TIMEOUT_MS);
      seen.push({ row, checked });
      const why = fault(row, checked);
      const cost = `${checked.states.toLocaleString('en')} states, ${checked.seconds.toFixed(1)} s, ${checked.megabytes.toFixed(0)} MB`;
      say(why === undefined, `${nameOf(row)} [${outcome(checked)}] ${cost}${why === undefined ? '' : `: ${why}`}`);
      if (args.includes('--steps')) for (const step of checked.steps) console.log(`#   ${step}`);
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, work));
  if (wanted.length === 0 || wanted.includes('traces')) {
    await againstTraces(say, (row) => seen.find((one) => one.row === row)?.checked.steps);
  }
  if (args.includes('--write') && wanted.length === 0) {
    seen.sort((a, b) => all.indexOf(a.row) - all.indexOf(b.row));
    const [before, after] = readFileSync(readme, 'utf8').split(/(?<=<!-- results -->\n)[\s\S]*(?=<!-- end -->)/);
    writeFileSync(readme, `${before}\n${table(seen)}\n\n${after}`);
  }
  console.log(`1..${number}`);
  return failed === 0 && number > 0 ? 0 : 1;
}

process.exitCode = await main();
