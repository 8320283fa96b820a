/**
 * A certificate authority that issues until its disk takes no more, then a while longer. Prints what left it ("CERT serial"), what was refused
 * ("REFUSED message") and at the end, when room was made, whether it goes on. Argument: directory. A line on standard input says that there is room.
 */
import { writeSync } from 'node:fs';
import { openCertificateAuthority } from '../../../../ca/api.ts';
import { asError } from '../../../../src/base/errors.ts';
import type { TrustDomain } from '../../../../src/model/ids.ts';
import { spiffeId } from '../../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../../src/pki/csr.ts';
import { generateKey } from '../../../../src/pki/keys.ts';

const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
const trustDomain = 'example.org' as TrustDomain;
const [workload, node] = [spiffeId('spiffe://example.org/shop'), spiffeId('spiffe://example.org/node/a')];
const csr = createCsr(generateKey());
const say = (text: string) => writeSync(1, `${text}\n`);

const ca = await openCertificateAuthority({ directory: process.argv[2]!, trustDomain, clock, onError: () => {} });

async function issueOnce(): Promise<boolean> {
  try {
    const issued = await ca.issueWorkloadSvid({ csr, spiffeId: workload, node, requester: 'x'.repeat(2000) });
    say(issued.ok ? `CERT ${issued.value.serial}` : `REFUSED ${issued.error}`);
    return true;
  } catch (thrown) {
    say(`REFUSED ${asError(thrown).message}`);
    return false;
  }
}

while ((await Promise.all(Array.from({ length: 8 }, issueOnce))).every(Boolean));
for (let i = 0; i < 5; i++) await issueOnce();
try {
  for (let i = 0; i < 1000; i++) {
    ca.revoke({ spiffeId: workload }, 'x'.repeat(200));
    say('REVOKED');
  }
} catch (thrown) {
  say(`NOT REVOKED ${asError(thrown).message}`);
}
say('FULL');
process.stdin.once('data', async () => {
  say((await issueOnce()) ? 'GOES ON' : 'STAYS');
  ca.close();
  process.exit(0);
});
