/** `npm run fuzz`: random worlds and packets through the kernel's programs and the reference, until so many packets agreed or
 *  one did not.
 *
 *     node test/fuzz/main.ts [--packets 1000000] [--seed N] [--length 80]
 *
 * A seed names the whole run; a difference is printed with the seed of its scenario, which alone repeats it:
 *     node test/fuzz/main.ts --scenario N */
import { parseArgs } from 'node:util';
import { unavailable } from '../bpf/support/kernel.ts';
import { Machine } from './machine.ts';
import { describeDifference } from './report.ts';
import { play, scenarioOf, shrink, type Tally } from './scenario.ts';

const { values } = parseArgs({
  options: {
    packets: { type: 'string', default: '1000000' },
    seed: { type: 'string' },
    scenario: { type: 'string' },
    length: { type: 'string', default: '80' },
  },
});

if (unavailable !== undefined) {
  console.error(`fuzz: ${unavailable}: run as root after ./dev build`);
  process.exit(2);
}

const machine = new Machine();
const tally: Tally = { packets: 0, notRun: 0, outcomes: new Map() };
const length = Number(values.length);
const seed = Number(values.seed ?? Math.floor(Math.random() * 0x7fffffff));

/** A difference counts when it can be repeated: on a busy machine a second may pass between two packets. */
function tryScenario(number: number): boolean {
  const scenario = scenarioOf(number, length);
  if (play(scenario, machine, tally) === undefined || play(scenario, machine) === undefined) return true;
  const small = shrink(scenario, machine);
  console.log(describeDifference(small.scenario, small.difference));
  return false;
}

function summary(): string {
  const outcomes = [...tally.outcomes].toSorted((a, b) => b[1] - a[1]);
  return outcomes.map(([name, n]) => `  ${String(n).padStart(9)}  ${name}`).join('\n');
}

if (values.scenario !== undefined) {
  const agreed = tryScenario(Number(values.scenario));
  if (agreed) console.log(`scenario ${values.scenario}: kernel and reference agree`);
  process.exit(agreed ? 0 : 1);
}

const goal = Number(values.packets);
const started = performance.now();
const rate = () => Math.round(tally.packets / ((performance.now() - started) / 1000));
console.log(`fuzz: seed ${seed}, ${goal} packets`);
for (let n = 0, shown = started; tally.packets < goal; n++) {
  if (!tryScenario((seed + n) >>> 0)) process.exit(1);
  if (performance.now() - shown > 5000) {
    shown = performance.now();
    console.log(`fuzz: ${tally.packets} packets, ${rate()} a second`);
  }
}
const seconds = ((performance.now() - started) / 1000).toFixed(1);
console.log(`fuzz: ${tally.packets} packets in ${seconds} s, ${rate()} a second: kernel and reference agree`);
console.log(`fuzz: ${tally.notRun} more were no packets to BPF_PROG_TEST_RUN`);
console.log(summary());
machine.close();
