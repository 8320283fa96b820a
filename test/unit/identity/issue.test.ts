import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { nodeSpiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { ENTRIES, TestServer, TRUST_DOMAIN, until } from './harness.ts';

let server: TestServer;
let client: ServerClient;

beforeAll(async () => {
  server = await TestServer.start();
  client = await server.joined('node-a');
});
afterAll(() => server[Symbol.asyncDispose]());

const csr = () => createCsr(generateKey());

test("an SVID for an own entry is the entry's and bound to the node", async () => {
  const [issued] = await client.issue([{ entryId: 'frontend', csr: csr() }]);
  if (!issued?.ok) throw new Error(issued?.error);
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const verified = verifyX509Svid(issued.value, bundle, server.clock.nowMs());
  if (!verified.ok) throw new Error(verified.error);
  expect(verified.value.spiffeId).toBe('spiffe://example.org/frontend');
  expect(verified.value.leaf.nodeBinding).toBe(nodeSpiffeId(TRUST_DOMAIN, 'node-a' as NodeName));
  const { svids } = await server.list('listSvids');
  expect(svids).toContainEqual(expect.objectContaining({ serial: verified.value.leaf.serial, revoked: false }));
});

test('in a batch each request has its own answer, in order', async () => {
  const results = await client.issue([
    { entryId: 'backend', csr: csr() },
    { entryId: 'frontend', csr: csr() },
    { entryId: 'nonsense', csr: csr() },
    { entryId: 'frontend', csr: Buffer.from('no request') },
  ]);
  expect(results.map((r) => (r.ok ? 'issued' : r.error))).toEqual([
    'ISSUE_NOT_YOUR_ENTRY',
    'issued',
    'ISSUE_NOT_YOUR_ENTRY',
    'ISSUE_CSR_INVALID',
  ]);
  const refused = server.auditLines().filter((line) => line.kind === 'svid.refused');
  expect(refused.map((line) => line.reason)).toContain('ISSUE_NOT_YOUR_ENTRY');
});

test('a request whose signature is not by its key is refused', async () => {
  const good = csr();
  const tampered = Buffer.from(good);
  tampered[tampered.length - 5]! ^= 1;
  const [result] = await client.issue([{ entryId: 'frontend', csr: tampered }]);
  expect(result).toEqual({ ok: false, error: 'ISSUE_CSR_INVALID' });
});

test('a batch beyond the limit is refused as a whole', async () => {
  const requests = Array.from({ length: 257 }, () => ({ entryId: 'frontend', csr: Buffer.alloc(1) }));
  await expect(client.issue(requests)).rejects.toMatchObject({ code: 'exhausted' });
});

test('a revoked identity gets nothing until it is registered anew', async () => {
  const entry = {
    id: 'temporary',
    spiffeId: 'spiffe://example.org/temporary',
    node: 'node-a',
    selectors: ['unix:uid:7'],
  };
  await server.putEntry(entry);
  expect((await client.issue([{ entryId: 'temporary', csr: csr() }]))[0]?.ok).toBe(true);
  await server.revoke({ $case: 'spiffeId', value: entry.spiffeId }, 0);
  server.clock.offsetMs += 5_000;
  const revoked = [{ ok: false, error: 'ISSUE_REVOKED' }];
  expect(await client.issue([{ entryId: 'temporary', csr: csr() }])).toEqual(revoked);
  await server.down();
  await server.up();
  await until('the client to be back', () => client.status().connected);
  expect(await client.issue([{ entryId: 'temporary', csr: csr() }])).toEqual(revoked);
  await server.putEntry(entry);
  expect((await client.issue([{ entryId: 'temporary', csr: csr() }]))[0]?.ok).toBe(true);
});

test('a checkpoint of the audit log may grow, never shrink, and is of the calling node', async () => {
  const note = (size: number, root = 'A', origin = 'example.org/node/node-a') =>
    Buffer.from(`${origin}\n${size}\n${root.repeat(43)}=\n\n— ${origin} c2lnbmF0dXJl\n`);
  await client.putCheckpoint(note(5));
  await client.putCheckpoint(note(5));
  await client.putCheckpoint(note(9));
  await expect(client.putCheckpoint(note(8))).rejects.toMatchObject({ reason: 'AUDIT_ROLLED_BACK' });
  await expect(client.putCheckpoint(note(9, 'B'))).rejects.toMatchObject({ reason: 'AUDIT_ROLLED_BACK' });
  await expect(client.putCheckpoint(note(10, 'A', 'example.org/node/node-b'))).rejects.toMatchObject({
    code: 'bad-input',
  });
  await expect(client.putCheckpoint(Buffer.from('anything'))).rejects.toMatchObject({ code: 'bad-input' });
});

test('an entry that leaves the file is no longer issued for', async () => {
  server.writeEntries(ENTRIES.slice(1));
  await until('the entry to be gone', () => client.entries().every((entry) => entry.id !== 'frontend'));
  expect(await client.issue([{ entryId: 'frontend', csr: csr() }])).toEqual([
    { ok: false, error: 'ISSUE_NOT_YOUR_ENTRY' },
  ]);
});
