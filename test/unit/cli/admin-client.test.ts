import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Metadata, status } from '@grpc/grpc-js';
import { expect, test } from 'vitest';
import { fromGrpc, serverClient } from '../../../src/cli/admin-client.ts';

const unavailable = (details: string) =>
  fromGrpc(Object.assign(new Error(details), { code: status.UNAVAILABLE, details, metadata: new Metadata() }));

test('a socket that is not there, that nobody answers on, or that is another user’s: each is said as what it is', () => {
  const dir = mkdtempSync(join(tmpdir(), 'cs-sock-'));
  try {
    expect(() => serverClient({ socket: join(dir, 'none') })).toThrow(
      /no identity server listens on \S+\/none: start it/,
    );
  } finally {
    rmSync(dir, { recursive: true });
  }
  expect(unavailable('No connection established. Last error: Error: connect ECONNREFUSED /run/s. ')).toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(/^no agent or identity server listens on \/run\/s: start it/),
  });
  expect(
    unavailable('No connection established. Last error: Error: connect EACCES /run/s.sock. Resolution note: '),
  ).toMatchObject({
    code: 'permission-denied',
    message: '/run/s.sock: only the user that it runs as may ask there; ask as that user or as root',
  });
});
