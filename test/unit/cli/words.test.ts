/** What commands say to a person: times, and who does not listen. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ServiceError, status } from '@grpc/grpc-js';
import { expect, test } from 'vitest';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { agentClient, call, fromGrpc } from '../../../src/cli/admin-client.ts';
import { seconds } from '../../../src/cli/output.ts';

test('times have tenths below a minute, and never sixty seconds', () => {
  const cases: [number, string][] = [
    [0, '0.0s'],
    [1_449, '1.4s'],
    [59_949, '59.9s'],
    [59_950, '1m0s'],
    [119_700, '2m0s'],
    [3_599_600, '60m0s'],
  ];
  for (const [ms, text] of cases) expect(seconds(ms)).toBe(text);
});

test('a socket that a killed process left behind, and one that never was, are told alike', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'cs-cli-'));
  const socket = join(dir, 'admin.sock');
  const script = `require('node:net').createServer().listen('${socket}', () => process.kill(process.pid, 'SIGKILL'))`;
  expect(() => execFileSync(process.execPath, ['-e', script], { stdio: 'ignore' })).toThrow();
  const client = agentClient(socket);
  await expect(call<JsonReply>(client, (done) => client.listPeers({}, done))).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(
      new RegExp(`^no .* listens on ${socket}: start it, or name its socket with --socket$`),
    ),
  });
  expect(() => agentClient(join(dir, 'none.sock'))).toThrow(/^no agent listens on .*none\.sock: start it/);
  rmSync(dir, { recursive: true });
});

test('what a starting agent says of a server that refuses it is told as it stands', () => {
  const details = 'node-a is starting. It waits: connect ECONNREFUSED 10.0.0.1:8443';
  const error = Object.assign(new Error(details), { code: status.UNAVAILABLE, details }) as ServiceError;
  expect(fromGrpc(error)).toMatchObject({ code: 'unavailable', message: details });
});
