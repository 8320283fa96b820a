import { chownSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../shell.ts';
import type { Stage } from '../stage.ts';
import { Demands, round, type Step } from './step.ts';

/** Each workload that has an identity on its node, and the one on node-b whose SVID a later step steals. */
const fetchers = [
  { dir: 'frontend', node: 'node-a', uid: 20001 },
  { dir: 'intruder', node: 'node-a', uid: 20003 },
  { dir: 'frontend6', node: 'node-a', uid: 20004 },
  { dir: 'monitor', node: 'node-a', uid: 20005 },
  { dir: 'backend', node: 'node-b', uid: 20002 },
  { dir: 'stolen-on-b', node: 'node-b', uid: 20016 },
];
const STRANGER_UID = 29999;

function fetch(stage: Stage, node: string, uid: number, dir: string) {
  const out = join(stage.dir, 'workloads', dir);
  mkdirSync(out, { recursive: true, mode: 0o700 });
  chownSync(out, uid, uid);
  return run(process.execPath, [
    join(import.meta.dirname, '../programs/fetch-svid.ts'),
    String(uid),
    stage.workloadSocket(node),
    out,
  ]);
}

export const identities: Step = {
  name: 'identities',
  shows:
    'each workload, under a uid of its own, gets its X.509-SVID over the SPIFFE Workload API; a stranger gets nothing',
  async run(stage) {
    const demands = new Demands();
    const saw: string[] = [];
    const times: number[] = [];
    for (const { dir, node, uid } of fetchers) {
      const got = await fetch(stage, node, uid, dir);
      if (got.status !== 0) {
        demands.that(false, `${dir}: ${got.stderr.trim()}`);
        continue;
      }
      const { spiffeId, ms } = JSON.parse(got.stdout) as { spiffeId: string; ms: number };
      const files = join(stage.dir, 'workloads', dir);
      const verified = await run('openssl', [
        'verify',
        '-x509_strict',
        '-CAfile',
        join(files, 'bundle.pem'),
        join(files, 'svid.pem'),
      ]);
      demands.that(verified.status === 0, `openssl verify refuses the SVID of ${dir}: ${verified.stderr.trim()}`);
      times.push(ms);
      saw.push(`uid ${uid} on ${node} is ${spiffeId} (${round(ms, 1)} ms), openssl verify: OK`);
    }
    const refused = await fetch(stage, 'node-a', STRANGER_UID, 'stranger');
    demands.that(
      refused.status !== 0 && refused.stderr.includes('PERMISSION_DENIED'),
      `uid ${STRANGER_UID} was not refused: ${refused.stderr}`,
    );
    saw.push(`uid ${STRANGER_UID}: ${refused.stderr.trim()}`);
    times.sort((a, b) => a - b);
    return demands.result(
      {
        svids: times.length,
        ms_p50: round(times[times.length >> 1] ?? 0),
        ms_max: round(times.at(-1) ?? 0),
        stranger: 'PERMISSION_DENIED',
      },
      saw,
    );
  },
};
