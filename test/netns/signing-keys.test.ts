/** The authority's signing key changes while traffic flows, and is taken back: what the kernels of two nodes do. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { testStage } from './support/stage-spec.ts';
import { ask, startBackend, startTraffic } from './support/stage-traffic.ts';

const stage = new Stage(testStage('keys', { workloads: ['frontend', 'backend'] }));
const RATE = 500;
/** As in restart.test.ts: WireGuard tries a handshake that was lost again only after five seconds. */
const REKEY_MS = 6_000;

interface Authority {
  readonly kind: string;
  readonly id: string;
  readonly state: string;
}

const server = (...args: string[]) => stage.cli(...args, '--socket', stage.serverSocket, '-o', 'json');
const ca = (...args: string[]) => server('ca', ...args);
const active = async () => {
  const { authorities } = (await ca('list')) as { authorities: Authority[] };
  return authorities.find(({ kind, state }) => kind === 'x509' && state === 'active')!.id;
};
const nodes = ['node-a', 'node-b'];
const proven = async (node: string) => ((await stage.agentCli(node, 'auth', 'list')) as { entries: unknown[] }).entries;

/** Unix ms. */
async function nodeSvidEnd(node: string): Promise<number> {
  const status = (await stage.status(node)) as unknown as { server: { nodeSvidNotAfterMs: number } };
  return status.server.nodeSvidNotAfterMs;
}

beforeAll(async () => {
  await stage.up(() => {});
  await startBackend(stage);
  expect(await ask(stage, 'frontend')).toBe(200);
});
afterAll(() => stage.down());

test('prepared, activated, tainted: a flow loses nothing; and when the old key is revoked, it goes on', async () => {
  const traffic = await startTraffic(stage, 'frontend', RATE);
  const old = await active();
  await ca('prepare', 'x509');
  await ca('activate', 'x509');
  const next = await active();
  expect(next).not.toBe(old);
  const received = (node: string) => stage.audit(node).filter(({ kind }) => kind === 'svid.received').length;
  const before = nodes.map(received);
  const nodeSvidEnds = await Promise.all(nodes.map(nodeSvidEnd));
  await ca('taint', 'x509', old);
  await until('new SVIDs on both nodes', 20_000, () =>
    nodes.every((node, i) => received(node) > before[i]!) ? true : undefined,
  );
  await until('new node SVIDs', 20_000, async () =>
    (await Promise.all(nodes.map(nodeSvidEnd))).every((end, i) => end > nodeSvidEnds[i]!) ? true : undefined,
  );
  const counted = await traffic.stop();
  expect(counted.sent).toBeGreaterThan(RATE);
  expect(counted.lost, counted.gaps).toBe(0);

  // The channel rests on node SVIDs of before: it ends with the key, the next one has another preshared key for the tunnel.
  const during = await startTraffic(stage, 'frontend', RATE);
  await ca('revoke', 'x509', old, '--reason', 'test');
  expect(await ask(stage, 'frontend')).toBe(200);
  const revoked = await during.stop();
  expect(revoked.lost, revoked.gaps).toBeLessThan((RATE * REKEY_MS) / 1000);
  // the audit logs' keys are certified anew too: whoever has only the bundle that is left can check them
  const bundle = join(stage.spec.dir, 'server/bundle.pem');
  for (const name of ['server', ...nodes]) {
    const verified = await stage.cliRaw('audit', 'verify', join(stage.spec.dir, name, 'audit'), '--bundle', bundle);
    expect(verified.status, verified.stdout + verified.stderr).toBe(0);
  }
});

test('revoked without warning: no kernel lets anything pass on it, and nodes come back only by attesting anew', async () => {
  const old = await active();
  await ca('prepare', 'x509');
  await ca('activate', 'x509');
  expect((await Promise.all(nodes.map(proven))).every((entries) => entries.length > 0)).toBe(true);
  await ca('revoke', 'x509', old, '--reason', 'stolen');
  expect(await ask(stage, 'frontend', { timeoutS: 1.5 })).toBe(0);
  for (const node of nodes) {
    await until(`the agent of ${node} to end`, 20_000, () =>
      stage.tail(node).includes('can no longer be the node') ? true : undefined,
    );
    await stage.stop(node);
    const reply = (await server('token', 'create', '--node', node)) as { token: string };
    writeFileSync(join(stage.spec.dir, `${node}.token`), `${reply.token}\n`, { mode: 0o600 });
    await stage.startAgent(node);
  }
  await until('a proof under the new key', 20_000, async () =>
    (await ask(stage, 'frontend', { timeoutS: 1 })) === 200 ? true : undefined,
  );
});
