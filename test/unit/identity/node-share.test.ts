import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { TestServer } from './harness.ts';

let server: TestServer;
let greedy: ServerClient;
let other: ServerClient;

beforeAll(async () => {
  // so that nothing comes back while the test runs
  server = await TestServer.start({ limits: { svidsPerNode: 1 } });
  greedy = await server.joined('node-a');
  other = await server.joined('node-b');
});
afterAll(() => server[Symbol.asyncDispose]());

const request = (entryId: string) => ({ entryId, csr: createCsr(generateKey()) });
/** Asks again and again for something that is never issued: it is of the share all the same. */
async function exhaust(perCall: number): Promise<void> {
  const requests = Array.from({ length: perCall }, () => ({ entryId: 'frontend', csr: Buffer.from('no request') }));
  for (let calls = 0; calls < 2_000; calls++) {
    try {
      await greedy.issue(requests);
    } catch (thrown) {
      expect(thrown).toMatchObject({ code: 'exhausted', message: expect.stringContaining('ISSUE_RATE') });
      return;
    }
  }
  throw new Error('a node could ask for as much as it liked');
}

test('a node that asks for more than its share is refused, for certificates and tokens alike; another node is not', async () => {
  await exhaust(256);
  await exhaust(1);
  await expect(greedy.issueJwt('frontend', ['shop'])).rejects.toMatchObject({ code: 'exhausted' });
  const [issued] = await other.issue([request('backend')]);
  expect(issued?.ok).toBe(true);
});

test('it is told once a minute, not once a refusal', () => {
  const told = server.auditLines().filter((line) => line.reason === 'ISSUE_RATE');
  expect(told).toHaveLength(1);
  expect(told[0]).toMatchObject({ kind: 'svid.refused', source: { node: 'node-a' } });
});

test('its share grows again with time', async () => {
  server.clock.offsetMs += 10_000;
  const [issued] = await greedy.issue([request('frontend')]);
  expect(issued?.ok).toBe(true);
});
