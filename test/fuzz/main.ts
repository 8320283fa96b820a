/** `npm run fuzz [-- NAME…]`: random packets against the reference, and damaged inputs to every parser of what strangers send.
 *
 *     npm run fuzz                                      a million of each
 *     npm run fuzz -- packets --packets 50000 --seed 7
 *     npm run fuzz -- packets --scenario 4711           one scenario again
 *     npm run fuzz -- jwt csr --inputs 100000
 *     npm run fuzz -- jwt --input 4711                  one input again
 *
 * A seed names the whole run. What is found is printed with the seed that alone repeats it; the exit status is then 1. */
import { parseArgs } from 'node:util';
import { unavailable } from '../bpf/support/kernel.ts';
import { targets } from './inputs/targets.ts';
import { repeatInput, runInputs } from './run-inputs.ts';
import { runPackets } from './run-packets.ts';

const PACKETS = 'packets';
const names = [PACKETS, ...targets.map(({ name }) => name)];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    packets: { type: 'string', default: '1000000' },
    length: { type: 'string', default: '80' },
    scenario: { type: 'string' },
    inputs: { type: 'string', default: '1000000' },
    input: { type: 'string' },
    seed: { type: 'string' },
  },
});

async function main(): Promise<number> {
  const unknown = positionals.filter((name) => !names.includes(name));
  if (unknown.length > 0) {
    console.error(`fuzz: there is no ${unknown.join(', ')}; there are ${names.join(', ')}`);
    return 2;
  }
  const wanted = positionals.length > 0 ? positionals : values.scenario !== undefined ? [PACKETS] : names;
  const seed = Number(values.seed ?? Math.floor(Math.random() * 0x7fffffff));
  if (wanted.includes(PACKETS)) {
    if (unavailable === undefined) {
      const scenario = values.scenario === undefined ? undefined : Number(values.scenario);
      const { packets, length } = values;
      if (!runPackets({ packets: Number(packets), length: Number(length), seed, scenario })) return 1;
    } else {
      console.error(`fuzz: packets: ${unavailable}: run as root after ./dev build`);
      if (positionals.includes(PACKETS)) return 2;
    }
  }
  const inputs = wanted.filter((name) => name !== PACKETS);
  if (values.input !== undefined) return inputs.every((name) => repeatInput(name, Number(values.input))) ? 0 : 1;
  return (await runInputs(inputs, Number(values.inputs), seed)) ? 0 : 1;
}

process.exit(await main());
