// ./dev demo: builds the demonstration cluster, walks through the tour, takes everything away again.
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import pc from 'picocolors';
import { asError } from '../../src/base/errors.ts';
import { BACKEND_HTTP_PORT, DEMO } from './demo-spec.ts';
import { Stage } from './stage.ts';
import { tour } from './tour/index.ts';
import type { Figures, Step, StepResult } from './tour/step.ts';

const LOCK = '/run/countersign-demo.pid';

interface Options {
  readonly json: boolean;
  readonly keep: boolean;
  readonly down: boolean;
  readonly steps: readonly Step[];
}

function parseArguments(args: readonly string[]): Options {
  const flags = new Set(args.filter((a) => a.startsWith('-')));
  for (const flag of flags) {
    if (!['--json', '--keep', '--down'].includes(flag))
      throw new Error(`no option ${flag}: there are --json, --keep, --down`);
  }
  const names = args.filter((a) => !a.startsWith('-'));
  for (const name of names) {
    if (!tour.some((s) => s.name === name))
      throw new Error(`no step ${name}: there are ${tour.map((s) => s.name).join(', ')}`);
  }
  const steps = names.length === 0 ? tour : tour.filter((s) => names.includes(s.name));
  return { json: flags.has('--json'), keep: flags.has('--keep'), down: flags.has('--down'), steps };
}

/** One demonstration at a time: a second one would pull the first one's namespaces away. */
function takeLock(): void {
  if (existsSync(LOCK)) {
    const pid = Number(readFileSync(LOCK, 'utf8'));
    const command = existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '';
    if (command.includes('demo.ts'))
      throw new Error(`another demonstration is running (process ${pid}): wait for it, or end it`);
  }
  writeFileSync(LOCK, String(process.pid), { mode: 0o600 });
}

const progress = (text: string): void => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${pc.dim(text)}`);
  else process.stderr.write(`${text}\n`);
};
const clearProgress = (): void => {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
};

function show(step: Step, result: StepResult, ms: number): void {
  const mark = result.ok ? pc.green('✓') : pc.red('✗');
  console.log(`${mark} ${pc.bold(step.name)}  ${step.shows} ${pc.dim(`(${(ms / 1000).toFixed(1)} s)`)}`);
  for (const line of result.saw) console.log(`    ${line.startsWith('NOT SO') ? pc.red(line) : line}`);
  console.log(`    ${pc.cyan(figureLine(result.figures))}\n`);
}

function figureLine(figures: Figures): string {
  return Object.entries(figures)
    .map(([k, v]) => `${k}=${v}`)
    .join('  ');
}

const banner = `
  ${pc.bold('Countersign')}: two workloads prove who they are before a packet passes

   ${pc.dim('node-a')}                          ${pc.dim('underlay')}                       ${pc.dim('node-b')}
   frontend ─┐                                                  ┌─ backend
   intruder ─┼─ eBPF ─ agent ══ TLS 1.3 peer channel ══ agent ─ eBPF ─┘
   …        ─┘   └──── WireGuard, keyed by the channel ────┘
                          identity server
`;

function tryNext(stage: Stage): string {
  const a = stage.agentSocket('node-a');
  return [
    `The playground stands. Try, from ${process.cwd()}:`,
    `  bin/countersign status --socket ${a}`,
    `  bin/countersign auth list --socket ${a}`,
    `  bin/countersign explain frontend6 backend --port ${BACKEND_HTTP_PORT} --socket ${a}`,
    `  bin/countersign explain intruder backend --port ${BACKEND_HTTP_PORT} --socket ${a}`,
    `  bin/countersign monitor --socket ${a}`,
    `  nsenter --net=/run/netns/${stage.netns('frontend6')} curl -g 'http://[fd77:2::10]:${BACKEND_HTTP_PORT}/'`,
    `  nsenter --net=/run/netns/${stage.netns('under')} tcpdump -ni br0`,
    `  bin/countersign entry list --socket ${stage.serverSocket}`,
    `Logs and configuration: ${stage.dir}. Take it away with ./dev demo --down`,
  ].join('\n');
}

async function runSteps(stage: Stage, options: Options, interrupted: () => boolean): Promise<string[]> {
  const failed: string[] = [];
  for (const step of options.steps) {
    progress(`${step.name}…`);
    const started = performance.now();
    const result = await step
      .run(stage, (what) => progress(`${step.name}: ${what}`))
      .catch((thrown: unknown): StepResult => {
        return { ok: false, figures: { error: asError(thrown).message }, saw: [`NOT SO: ${asError(thrown).message}`] };
      });
    if (interrupted()) break;
    const ms = performance.now() - started;
    if (!result.ok) failed.push(step.name);
    clearProgress();
    if (options.json)
      console.log(
        JSON.stringify({ step: step.name, ok: result.ok, seconds: Number((ms / 1000).toFixed(2)), ...result.figures }),
      );
    else show(step, result, ms);
  }
  return failed;
}

async function main(): Promise<number> {
  const options = parseArguments(process.argv.slice(2));
  takeLock();
  const stage = new Stage(DEMO);
  let ending: Promise<void> | undefined;
  let interrupted = false;
  const end = (): Promise<void> => {
    // One and the same end for whoever asks: nobody may leave the process while the other still takes away.
    ending ??= stage.down().then(() => rmSync(LOCK, { force: true }));
    return ending;
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      interrupted = true;
      clearProgress();
      process.stderr.write('taking the playground away…\n');
      void end().then(() => process.exit(130));
    });
  }
  if (options.down) {
    const found = await Stage.clear(DEMO);
    rmSync(LOCK, { force: true });
    console.log(
      found.namespaces + found.processes === 0
        ? 'nothing to take away'
        : `taken away: ${found.namespaces} namespaces, ${found.processes} processes`,
    );
    return 0;
  }
  if (!options.json) console.log(banner);
  const started = performance.now();
  let failed: string[];
  try {
    await stage.up((what) => progress(`setting the stage: ${what}`));
    const backend = stage.workload('backend');
    stage.spawnIn('backend', 'http-server', 'http-server.ts', String(backend.uid), String(BACKEND_HTTP_PORT));
    failed = await runSteps(stage, options, () => interrupted);
  } catch (thrown) {
    // Ctrl-C reaches the tools that run in this moment as well; what they failed of is told only after it.
    await delay(20);
    clearProgress();
    if (!interrupted) console.error(asError(thrown).message);
    failed = ['stage'];
  }
  if (interrupted) {
    await end();
    return 130;
  }
  const seconds = Number(((performance.now() - started) / 1000).toFixed(1));
  if (options.json) console.log(JSON.stringify({ summary: true, ok: failed.length === 0, failed, seconds }));
  else if (failed.length === 0) console.log(pc.green(`All ${options.steps.length} steps hold (${seconds} s).`));
  else console.log(pc.red(`Failed: ${failed.join(', ')} (${seconds} s).`));
  if (options.keep) {
    rmSync(LOCK, { force: true });
    if (!options.json) console.log(`\n${tryNext(stage)}`);
  } else await end();
  return failed.length === 0 ? 0 : 1;
}

main().then(
  (code) => process.exit(code),
  (thrown) => {
    console.error(asError(thrown).message);
    process.exit(2);
  },
);
