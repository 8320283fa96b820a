import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials, type ServiceError } from '@grpc/grpc-js';
import { afterEach, expect, test, vi } from 'vitest';
import { AgentAdminClient } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { StartingStatus } from '../../../src/agent/starting.ts';

afterEach(() => vi.restoreAllMocks());

test('a start that waits for the identity server says so on the admin socket, and makes way', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'cs-starting-'));
  const path = join(dir, 'admin.sock');
  const starting = new StartingStatus(path, 'node-a');
  expect(existsSync(path)).toBe(false);
  // an agent of before that the server still has to let go of, say
  starting.waiting('identity server at 192.0.2.1:8443: connection refused');
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(existsSync(path)).toBe(false);
  const later = performance.now() + 2_000;
  vi.spyOn(performance, 'now').mockImplementation(() => later);
  starting.waiting('identity server at 192.0.2.1:8443: connection refused');
  vi.restoreAllMocks();
  await vi.waitFor(() => expect(existsSync(path)).toBe(true));
  starting.waiting('identity server at 192.0.2.1:8443: still not there');
  const client = new AgentAdminClient(`unix:${path}`, credentials.createInsecure());
  const refusal = (call: 'getStatus' | 'listVouches' | 'listPeers') =>
    new Promise<ServiceError | null>((resolve) => client[call]({}, (error) => resolve(error)));
  for (const call of ['getStatus', 'listVouches', 'listPeers'] as const) {
    expect(await refusal(call)).toMatchObject({
      code: 14,
      details: expect.stringMatching(/node-a is starting and vouches for nothing yet.*It waits: .*still not there/),
    });
  }
  client.close();
  await starting.close();
  expect(existsSync(path)).toBe(false);
  await starting.close();
  rmSync(dir, { recursive: true });
});
