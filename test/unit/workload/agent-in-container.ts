/** An agent in a container: joins the control group argv[2], serves "NAME=SELECTOR" of the further arguments, prints its socket. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openStage } from './stage.ts';

const [, , group, ...entries] = process.argv as [string, string, string, ...string[]];
writeFileSync(join(group, 'cgroup.procs'), String(process.pid));
const stage = await openStage();
for (const entry of entries) {
  const [name, selector] = entry.split('=') as [string, string];
  stage.feed.add(name, selector);
}
process.stdout.write(`${stage.socketPath}\n`);
process.stdin.on('end', () => void stage.clear()).resume();
