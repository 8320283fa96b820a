// A workload: drops to its uid, then asks the Workload API who it is. Arguments: uid, socket, output directory.
// Writes svid.pem, key.pem and bundle.pem; prints {spiffeId, ms}. Exit 1 with the gRPC status on a refusal.
import { fetchX509Svid, writeSvidFiles } from '../../../src/workload/client.ts';
import { dropTo } from './drop-to.ts';

const [uid = '', socket = '', out = ''] = process.argv.slice(2);
dropTo(Number(uid));
try {
  const started = performance.now();
  const svid = await fetchX509Svid(socket);
  const ms = performance.now() - started;
  writeSvidFiles(svid, out);
  console.log(JSON.stringify({ spiffeId: svid.spiffeId, ms }));
} catch (thrown) {
  console.error(thrown instanceof Error ? thrown.message : String(thrown));
  process.exitCode = 1;
}
