// A workload: drops to its uid, then asks the Workload API who it is. Arguments: uid, socket, output directory.
// Writes svid.pem, key.pem and bundle.pem; prints {spiffeId, ms}. Exit 1 with the gRPC status on a refusal.
import { asError, CountersignError } from '../../../src/base/errors.ts';
import { fetchX509Svid } from '../../../src/workload/client.ts';
import { checkOutputDirectory, replaceFiles } from '../../../src/workload/outputs/directory.ts';
import { pemFiles } from '../../../src/workload/outputs/files.ts';
import { dropTo } from './drop-to.ts';

const [uid = '', socket = '', out = ''] = process.argv.slice(2);
dropTo(Number(uid));
try {
  const started = performance.now();
  const svid = await fetchX509Svid(socket);
  const ms = performance.now() - started;
  checkOutputDirectory(out);
  replaceFiles(out, pemFiles(svid));
  console.log(JSON.stringify({ spiffeId: svid.spiffeId, ms }));
} catch (thrown) {
  const code = thrown instanceof CountersignError ? thrown.code.toUpperCase().replaceAll('-', '_') : 'UNKNOWN';
  console.error(`${code}: ${asError(thrown).message}`);
  process.exitCode = 1;
}
