/** A workload of its own process (and uid): watches its SVIDs at argv[2] and prints a JSON line for each thing it is told. */
import { watchX509Svids } from '../../../src/workload/client.ts';

const say = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const watch = watchX509Svids(
  process.argv[2]!,
  (svids) => say({ ids: svids.map((svid) => svid.spiffeId) }),
  (problem) => say({ refused: problem.code, message: problem.message }),
);
process.stdin.on('end', () => watch.close());
process.stdin.resume();
