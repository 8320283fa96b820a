import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { restoreBackup } from '../../../identity/backup/restore.ts';
import type { BackupChunk } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { KeyAdmin } from '../server-client/rotation-stage.ts';
import { TestServer, until } from './harness.ts';

let server: TestServer;
let file: string;

beforeEach(async () => {
  server = await TestServer.start();
  file = join(server.dir, 'state.backup');
});
afterEach(() => server[Symbol.asyncDispose]());

async function backup(): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const { data } of server.admin.backup({}) as AsyncIterable<BackupChunk>) chunks.push(data);
  writeFileSync(file, Buffer.concat(chunks), { mode: 0o600 });
}

const restore = (force = false) => restoreBackup(server.config(), file, force, Date.now());

const csr = () => createCsr(generateKey());

/** Directories and files below the data directory, with their modes. */
function modes(): Record<string, number> {
  const data = join(server.dir, 'data');
  return Object.fromEntries(
    readdirSync(data, { recursive: true, encoding: 'utf8' })
      .filter((name) => !name.startsWith('before-restore'))
      .map((name) => [name, statSync(join(data, name)).mode & 0o777]),
  );
}

describe('a backup of a running server', () => {
  test('holds all that a server on another machine needs: its agents go on with their certificates', async () => {
    const client = await server.joined('node-a');
    await server.putEntry({
      id: 'extra',
      spiffeId: 'spiffe://example.org/extra',
      node: 'node-a',
      selectors: ['unix:uid:5'],
    });
    const revoked = await server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/backend' }, 10);
    await backup();
    const bundle = server.bundle;
    await client.close();
    await server.down();
    rmSync(join(server.dir, 'data'), { recursive: true });
    const { movedTo } = await restore();
    expect(movedTo).toBeUndefined();
    await server.up();
    expect(server.bundle).toEqual(bundle);
    // the same state directory, no token
    const again = await server.client('node-a');
    expect(again.entries().map(({ id }) => id)).toContain('extra');
    expect(again.status().version).toBeGreaterThan(1_000_000_000n);
    const status = await server.list('getStatus');
    expect(status).toMatchObject({ revocations: Number(revoked.sequence) });
    const results = await again.issue([{ entryId: 'extra', csr: csr() }]);
    expect(results[0]?.ok).toBe(true);
  });

  test('is whole although certificates are issued all the while, and stops none of them', async () => {
    const client = await server.joined('node-a');
    let issued = 0;
    let running = true;
    const load = (async () => {
      while (running) {
        const results = await client.issue(Array.from({ length: 20 }, () => ({ entryId: 'frontend', csr: csr() })));
        issued += results.filter(({ ok }) => ok).length;
        expect(results.every(({ ok }) => ok)).toBe(true);
      }
    })();
    await until('certificates', () => issued > 100);
    for (let i = 0; i < 3; i++) await backup();
    const during = issued;
    running = false;
    await load;
    expect(during).toBeGreaterThan(100);
    await client.close();
    await server.down();
    await restore(true);
    await server.up();
    const { svids } = (await server.list('listSvids')) as { svids: { serial: string }[] };
    expect(svids.length).toBeGreaterThan(100);
    expect(new Set(svids.map(({ serial }) => serial)).size).toBe(svids.length);
    expect(readdirSync(join(server.dir, 'data')).filter((name) => name.startsWith('backup.'))).toEqual([]);
  });

  test('is an act of the administrator, on the audit log', async () => {
    await backup();
    const event = await until('the event', () => server.auditLines().find(({ detail }) => detail?.action === 'backup'));
    expect(event).toMatchObject({ kind: 'admin.action', actor: 'admin' });
  });
});

describe('a restore', () => {
  test('of a state from before a signing key changed is taken by agents that saw the change', async () => {
    const client = await server.joined('node-a');
    await backup();
    const keys = new KeyAdmin(server);
    await keys.prepare('x509');
    await until('the next key', () => client.ownBundle().bundle.authorities.length === 2);
    const seen = client.ownBundle().bundle;
    await client.close();
    await server.down();
    await restore(true);
    await server.up();
    const again = await server.client('node-a');
    expect(again.ownBundle().bundle.authorities).toEqual(seen.authorities.slice(0, 1));
    expect(again.ownBundle().bundle.sequence).toBeGreaterThan(seen.sequence!);
  });

  test('is refused while the server runs, and where there is a state already', async () => {
    await backup();
    await expect(restore(true)).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(/stop it first/),
    });
    await server.down();
    await expect(restore()).rejects.toMatchObject({
      code: 'already-exists',
      message: expect.stringMatching(/--force/),
    });
  });

  test('moves what was there aside, whole, and its own files are private', async () => {
    await backup();
    const before = modes();
    await server.down();
    const identity = readFileSync(join(server.dir, 'data/identity.db'));
    const { movedTo } = await restore(true);
    expect(readFileSync(join(movedTo!, 'identity.db')).equals(identity)).toBe(true);
    expect(existsSync(join(movedTo!, 'ca/ledger.db'))).toBe(true);
    for (const [name, mode] of Object.entries(modes())) expect([name, mode]).toEqual([name, before[name] ?? mode]);
    expect(modes()['identity.db']).toBe(0o600);
    expect(modes().ca).toBe(0o700);
    await server.up();
  });

  test('of an older state takes the nodes as they are: none has to join again, none comes under an id of another', async () => {
    const first = await server.joined('node-a');
    const id = first.node.info.id;
    await backup();
    // after the backup: another node joins, and the first begins a new life
    const second = await server.joined('node-b');
    await first.close();
    const reborn = await server.client('node-a', { bootId: 'another boot' });
    expect(reborn.node.info.incarnation).toBe(2n);
    await reborn.close();
    await second.close();
    await server.down();
    await restore(true);
    await server.up();
    const again = await server.client('node-a', { bootId: 'another boot' });
    expect(again.node.info).toMatchObject({ id, incarnation: 2n });
    // node-b is not in the backup: it is refused, joins with a token, and gets an id that nobody had
    const secondId = second.node.info.id;
    const rejoined = await server.joined('node-b');
    expect(rejoined.node.info.id).toBeGreaterThan(secondId);
  });

  test('of a backup that was cut off, altered, is another trust domain’s or is none changes nothing', async () => {
    await backup();
    await server.down();
    const whole = readFileSync(file);
    const state = () => readFileSync(join(server.dir, 'data/identity.db'));
    const before = state();
    const attempt = async (bytes: Buffer, message: RegExp) => {
      rmSync(file);
      writeFileSync(file, bytes, { mode: 0o600 });
      await expect(restore(true)).rejects.toThrow(message);
      expect(state().equals(before)).toBe(true);
      expect(existsSync(join(server.dir, 'data/restore.new'))).toBe(false);
    };
    await attempt(whole.subarray(0, whole.length - 1), /cut off/);
    await attempt(Buffer.concat([whole, Buffer.of(0)]), /cut off or has more/);
    const altered = Buffer.from(whole);
    altered[whole.length - 5000]! ^= 1;
    await attempt(altered, /is not what was written/);
    await attempt(Buffer.from('not a backup at all, but a text'), /no backup of a server/);
    const text = whole.toString('latin1');
    await attempt(
      Buffer.from(text.replace('"trustDomain":"example.org"', '"trustDomain":"example.net"'), 'latin1'),
      /example\.net/,
    );
    const outside = text.replace('"name":"ca/ledger.db"', '"name":"../ledger.db"');
    await attempt(Buffer.from(outside, 'latin1'), /header does not check/);
    rmSync(file);
    writeFileSync(file, whole, { mode: 0o600 });
    chmodSync(file, 0o644);
    await expect(restore(true)).rejects.toMatchObject({
      code: 'permission-denied',
      message: expect.stringMatching(/chmod 600/),
    });
  });

  test('that was broken off half way keeps the server from starting, and may be run again', async () => {
    await backup();
    await server.down();
    const data = join(server.dir, 'data');
    writeFileSync(join(data, 'restore.unfinished'), '');
    rmSync(join(data, 'identity.db'));
    await expect(server.up()).rejects.toThrow(/broken off.*run it again/);
    await restore();
    await server.up();
    expect(await server.list('getStatus')).toMatchObject({ trustDomain: 'example.org' });
  });
});

test('a server whose ledger is damaged says so, leaves it, and comes back from its backup', async () => {
  await backup();
  await server.down();
  const ledger = join(server.dir, 'data/ca/ledger.db');
  const bytes = readFileSync(ledger);
  bytes.fill(0x33, 4096, 12_288);
  writeFileSync(ledger, bytes);
  await expect(server.up()).rejects.toThrow(/ledger\.db: .*restore/s);
  expect(readFileSync(ledger).equals(bytes)).toBe(true);
  await restore(true);
  await server.up();
  expect(await server.list('getStatus')).toMatchObject({ trustDomain: 'example.org' });
});
