/** `npm run bench [-- NAME…]`: runs the named benchmarks, or all. Progress on stderr, one JSON line for each result on stdout. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Bench } from './support.ts';

/** Each file exports `bench`. One that cannot run here says so and the others go on. */
const names = [
  'verdict',
  'policy',
  'throughput',
  'scale',
  'first-connect',
  'vouch-scale',
  'auth-latency',
  'revoke',
  'authenticate',
  'issue',
  'registry',
];

const progress = (line: string) => process.stderr.write(`${line}\n`);

async function load(name: string): Promise<Bench | undefined> {
  const path = join(import.meta.dirname, `${name}.ts`);
  if (!existsSync(path)) {
    progress(`${name}: not there`);
    return undefined;
  }
  const module = (await import(path)) as { bench: Bench };
  return module.bench;
}

async function main(asked: readonly string[]): Promise<number> {
  const unknown = asked.filter((name) => !names.includes(name));
  if (unknown.length > 0) {
    progress(`no such benchmark: ${unknown.join(', ')}; there are ${names.join(', ')}`);
    return 2;
  }
  for (const name of asked.length > 0 ? asked : names) {
    try {
      const bench = await load(name);
      if (bench === undefined) continue;
      progress(`${name}: begins`);
      await bench.run((result) => process.stdout.write(`${JSON.stringify(result)}\n`), progress);
    } catch (error) {
      progress(`${name}: could not run: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  return 0;
}

// Exit at once: what a benchmark left open must not keep the process.
process.exit(await main(process.argv.slice(2)));
