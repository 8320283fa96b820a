/** Random worlds and packets through the kernel's programs and the reference, until so many packets agreed or one did not. */
import { Machine } from './machine.ts';
import { describeDifference } from './report.ts';
import { play, scenarioOf, shrink, type Tally } from './scenario.ts';

export interface PacketRun {
  readonly packets: number;
  readonly seed: number;
  /** Packets of a scenario. */
  readonly length: number;
  /** This one again, and nothing else. */
  readonly scenario: number | undefined;
}

/** True: kernel and reference agree. */
export function runPackets({ packets: goal, seed, length, scenario }: PacketRun): boolean {
  const machine = new Machine();
  const tally: Tally = { packets: 0, notRun: 0, outcomes: new Map() };

  /** A difference counts when it can be repeated: on a busy machine a second may pass between two packets. */
  const agrees = (number: number): boolean => {
    const played = scenarioOf(number, length);
    if (play(played, machine, tally) === undefined || play(played, machine) === undefined) return true;
    const small = shrink(played, machine);
    console.log(describeDifference(small.scenario, small.difference));
    return false;
  };

  try {
    if (scenario !== undefined) {
      const agreed = agrees(scenario);
      if (agreed) console.log(`scenario ${scenario}: kernel and reference agree`);
      return agreed;
    }
    const started = performance.now();
    const rate = () => Math.round(tally.packets / ((performance.now() - started) / 1000));
    console.log(`fuzz: packets: seed ${seed}, ${goal} packets`);
    for (let n = 0, shown = started; tally.packets < goal; n++) {
      if (!agrees((seed + n) >>> 0)) return false;
      if (performance.now() - shown > 5000) {
        shown = performance.now();
        console.log(`fuzz: packets: ${tally.packets}, ${rate()} a second`);
      }
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(
      `fuzz: packets: ${tally.packets} in ${seconds} s, ${rate()} a second: kernel and reference agree; ${tally.notRun} more were no packets to BPF_PROG_TEST_RUN`,
    );
    console.log(summary(tally));
    return true;
  } finally {
    machine.close();
  }
}

function summary(tally: Tally): string {
  const outcomes = [...tally.outcomes].toSorted((a, b) => b[1] - a[1]);
  return outcomes.map(([name, n]) => `  ${String(n).padStart(9)}  ${name}`).join('\n');
}
