import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { EtcdStore } from '../../../identity/etcd/client.ts';
import type { EtcdConfig } from '../../../identity/etcd/config.ts';
import { etcdKeyBlobs } from '../../../identity/etcd/key-blobs.ts';
import { LEADER, logKey, SNAPSHOT } from '../../../identity/etcd/layout.ts';
import { LeaderLog } from '../../../identity/etcd/leader-log.ts';
import { Leadership } from '../../../identity/etcd/leadership.ts';
import { Replica } from '../../../identity/etcd/replica.ts';
import { refuseShared } from '../../../identity/etcd/restore.ts';
import { seed, setAside } from '../../../identity/etcd/seed.ts';
import { quiet } from './harness.ts';
import { Etcd, eventually } from './several.ts';

const base = mkdtempSync(join(tmpdir(), 'cs-etcd-'));
let etcd: Etcd;
let config: EtcdConfig;
let store: EtcdStore;
let dir: string;
let round = 0;
const closers: (() => unknown)[] = [];

beforeAll(async () => {
  etcd = await Etcd.start(base);
}, 30_000);
afterAll(async () => {
  await etcd.down();
  rmSync(base, { recursive: true, force: true });
});
beforeEach(() => {
  round += 1;
  dir = join(base, `round-${round}`);
  mkdirSync(dir);
  config = { type: 'etcd', endpoints: [etcd.endpoint], prefix: `/test/${round}/`, leaseSeconds: 2 } as EtcdConfig;
  store = new EtcdStore(config);
  closers.push(() => store.close());
});
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const IDENTITY = `CREATE TABLE entries (id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT; PRAGMA user_version = 1;`;
const LEDGER = `CREATE TABLE svid (id INTEGER PRIMARY KEY, serial TEXT NOT NULL, not_after_ms INTEGER NOT NULL) STRICT;
  CREATE INDEX svid_by_not_after ON svid (not_after_ms); PRAGMA user_version = 1;`;

interface Leader {
  readonly log: LeaderLog;
  readonly leadership: Leadership;
  readonly identity: DatabaseSync;
  readonly ledger: DatabaseSync;
  put(id: string, text?: string): void;
}

async function lead(replica?: Replica, entries = 1000): Promise<Leader> {
  const leadership = (await Leadership.attempt(store, 2, 'here', 0, quiet))!;
  expect(leadership).toBeDefined();
  await replica?.catchUp();
  replica?.close();
  const log = new LeaderLog({
    etcd: store,
    leadership,
    head: replica?.sequence ?? 0,
    snapshot: replica?.snapshot,
    scratch: dir,
    nowMs: () => 1000,
    log: quiet,
    snapshotAfter: { entries, bytes: 64 << 20 },
  });
  const place = replica?.paths ?? { identity: join(dir, 'identity.db'), ledger: join(dir, 'ledger.db') };
  const [identity, ledger] = [new DatabaseSync(place.identity), new DatabaseSync(place.ledger)];
  if (replica?.snapshot === undefined) {
    identity.exec(IDENTITY);
    ledger.exec(LEDGER);
  }
  log.opened('identity', identity);
  log.opened('ledger', ledger);
  closers.push(async () => {
    log.close();
    await leadership.resign();
  });
  const put = (id: string, text = 'text') => {
    identity.prepare('INSERT OR REPLACE INTO entries VALUES (?, ?)').run(id, text);
  };
  return { log, leadership, identity, ledger, put };
}

let replicas = 0;
function follow(): Replica {
  replicas += 1;
  const replica = new Replica(store, join(dir, `replica-${replicas}`));
  closers.push(() => replica.close());
  return replica;
}

function rows(path: string, table: string): unknown[] {
  const database = new DatabaseSync(path, { readOnly: true });
  try {
    return database.prepare(`SELECT * FROM ${table} ORDER BY 1`).all();
  } finally {
    database.close();
  }
}

describe('the log', () => {
  test('gives a standby what the leader wrote, in both databases, while it runs and to one that comes later', async () => {
    const { log, put, ledger, identity } = await lead();
    await log.durable();
    const early = follow();
    await early.catchUp();
    put('a');
    put('b');
    ledger.exec("INSERT INTO svid VALUES (1, '01', 2000)");
    await log.durable();
    put('b', 'changed');
    identity.exec("DELETE FROM entries WHERE id = 'a'");
    await log.durable();
    const late = follow();
    for (const replica of [early, late]) {
      await replica.catchUp();
      expect(rows(replica.paths.identity, 'entries')).toEqual([{ id: 'b', text: 'changed' }]);
      expect(rows(replica.paths.ledger, 'svid')).toEqual([{ id: 1, serial: '01', not_after_ms: 2000 }]);
    }
  });

  test('takes a change that is larger than etcd takes at once', async () => {
    const { log, put } = await lead();
    await log.durable();
    for (let i = 0; i < 40; i++) put(`e-${i}`, `${i}`.padEnd(100_000, 'x'));
    await log.durable();
    const replica = follow();
    await replica.catchUp();
    expect(rows(replica.paths.identity, 'entries')).toHaveLength(40);
    const whole = replica.sequence;
    expect(whole).toBe(2);
  });

  test('is cut off behind a snapshot, which leaves out what has ended; who was behind goes on from it', async () => {
    const { log, put, ledger } = await lead(undefined, 5);
    ledger.exec("INSERT INTO svid VALUES (1, 'ended', 900), (2, 'live', 5000)");
    await log.durable();
    const behind = follow();
    await behind.catchUp();
    for (let i = 0; i < 12; i++) {
      put(`e-${i}`);
      await log.durable();
    }
    expect(await store.range(logKey(0), logKey(9), 100)).toEqual([]);
    const fresh = follow();
    for (const replica of [behind, fresh]) {
      await replica.catchUp();
      expect(rows(replica.paths.identity, 'entries')).toHaveLength(12);
      expect(rows(replica.paths.ledger, 'svid')).toEqual([{ id: 2, serial: 'live', not_after_ms: 5000 }]);
    }
    // the leader removes what the others never had
    ledger.exec('DELETE FROM svid WHERE not_after_ms < 1000');
    put('last');
    await log.durable();
    await fresh.catchUp();
    expect(rows(fresh.paths.identity, 'entries')).toHaveLength(13);
  });

  test('tells of a change of the tables themselves by a snapshot', async () => {
    const first = await lead();
    first.put('a');
    await first.log.durable();
    const old = follow();
    await old.catchUp();
    first.log.close();
    await first.leadership.resign();
    // a server of a newer version
    const second = follow();
    await second.catchUp();
    second.close();
    const upgrade = new DatabaseSync(second.paths.identity);
    upgrade.exec("ALTER TABLE entries ADD COLUMN more TEXT NOT NULL DEFAULT 'm'; PRAGMA user_version = 2;");
    upgrade.close();
    const next = await lead(second);
    next.identity.exec("INSERT INTO entries VALUES ('b', 'text', 'n')");
    await next.log.durable();
    await old.catchUp();
    expect(rows(old.paths.identity, 'entries')).toEqual([
      { id: 'a', text: 'text', more: 'm' },
      { id: 'b', text: 'text', more: 'n' },
    ]);
  });

  test('a standby whose copy went another way throws it away and begins with the snapshot', async () => {
    const { log, put } = await lead();
    put('a');
    await log.durable();
    const replica = follow();
    await replica.catchUp();
    const damage = new DatabaseSync(replica.paths.identity);
    damage.exec("UPDATE entries SET text = 'other'");
    damage.close();
    put('a', 'changed');
    await log.durable();
    await replica.catchUp();
    expect(rows(replica.paths.identity, 'entries')).toEqual([{ id: 'a', text: 'changed' }]);
  });
});

describe('a leader that was followed by another one', () => {
  async function followed() {
    const first = await lead();
    first.put('before');
    await first.log.durable();
    // its lease ends, whatever it believes
    await store.change([[LEADER, 'Create', String(first.leadership.condition[2])]], [{ delete: LEADER }]);
    const replica = follow();
    const second = await lead(replica);
    second.put('second');
    await second.log.durable();
    return { first, second };
  }

  test('writes nothing more and answers nothing more', async () => {
    const { first } = await followed();
    first.put('after');
    await expect(first.log.durable()).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(/does not lead/),
    });
    expect(first.leadership.lost.aborted).toBe(true);
    const reader = follow();
    await reader.catchUp();
    expect(rows(reader.paths.identity, 'entries').map((row) => (row as { id: string }).id)).toEqual([
      'before',
      'second',
    ]);
  });

  test('answers nothing even if it has nothing to write', async () => {
    const { first } = await followed();
    await expect(first.log.durable()).rejects.toMatchObject({ code: 'unavailable' });
  });

  test('changes no key', async () => {
    const { first, second } = await followed();
    const [old, now] = [first, second].map(({ leadership }) => etcdKeyBlobs(store, leadership.condition));
    expect(await now!.create('x509-1', Buffer.from('one'))).toBe(true);
    await expect(old!.create('x509-2', Buffer.from('two'))).rejects.toMatchObject({ code: 'unavailable' });
    await expect(old!.replace('x509-1', Buffer.from('two'))).rejects.toMatchObject({ code: 'unavailable' });
    await expect(old!.delete('x509-1')).rejects.toMatchObject({ code: 'unavailable' });
    expect(await now!.create('x509-1', Buffer.from('three'))).toBe(false);
    expect(await now!.get('x509-1')).toEqual(Buffer.from('one'));
    expect(await now!.list()).toEqual(['x509-1']);
  });
});

test('only one leads at a time, and the next one as soon as the first gives up', async () => {
  const first = await lead();
  expect(await Leadership.attempt(store, 2, 'there', 0, quiet)).toBeUndefined();
  await first.leadership.resign();
  const second = await Leadership.attempt(store, 2, 'there', 0, quiet);
  expect(second).toBeDefined();
  await second!.resign();
});

test('a leader keeps its lease as long as it runs, and notices when it is gone', async () => {
  const { leadership } = await lead();
  await new Promise((resolve) => setTimeout(resolve, 3000));
  expect(leadership.lost.aborted).toBe(false);
  const [holder] = await store.range(LEADER, `${LEADER}0`, 1);
  expect(holder).toBeDefined();
});

test('a damaged snapshot is not taken for the state', async () => {
  const { log, put } = await lead();
  put('a');
  await log.durable();
  const info = JSON.parse((await store.get(SNAPSHOT))!.toString());
  info.parts.identity.sha256 = '00';
  await store.change([[SNAPSHOT, 'Version', 1]], [{ put: SNAPSHOT, value: JSON.stringify(info) }]);
  await expect(follow().catchUp()).rejects.toThrow(/snapshot .* in etcd is damaged/);
});

test('a restore is refused while a server leads, and where etcd has a state already; with force the state there goes', async () => {
  const { log, leadership, put } = await lead();
  put('a');
  await log.durable();
  await expect(refuseShared(config, true)).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(/stop all/),
  });
  log.close();
  await leadership.resign();
  await expect(refuseShared(config, false)).rejects.toMatchObject({
    code: 'already-exists',
    message: expect.stringMatching(/--force/),
  });
  const empty = await refuseShared(config, true);
  expect(await store.get(SNAPSHOT)).toBeDefined();
  await empty();
  expect(await store.range('', '\u00ff', 10)).toEqual([]);
});

describe('a server that had its state on its own disk', () => {
  function ownState(key: string): string {
    const dataDir = join(dir, 'data');
    mkdirSync(join(dataDir, 'ca/keys'), { recursive: true });
    for (const [name, schema] of [
      ['identity.db', IDENTITY],
      ['ca/ledger.db', LEDGER],
    ] as const) {
      const database = new DatabaseSync(join(dataDir, name));
      database.exec(schema);
      if (name === 'identity.db') database.exec("INSERT INTO entries VALUES ('own', 'text')");
      database.close();
    }
    writeFileSync(join(dataDir, 'ca/keys/x509-1.key'), key, { mode: 0o600 });
    return dataDir;
  }

  test('gives it to an empty etcd, once', async () => {
    const sealed = 'COUNTERSIGN SEALED KEY 1\nand what follows';
    const dataDir = ownState(sealed);
    const leadership = (await Leadership.attempt(store, 2, 'here', 0, quiet))!;
    const blobs = etcdKeyBlobs(store, leadership.condition);
    const replica = follow();
    expect(await seed(dataDir, replica, blobs)).toBe(true);
    expect(rows(replica.paths.identity, 'entries')).toEqual([{ id: 'own', text: 'text' }]);
    expect((await blobs.get('x509-1'))?.toString()).toBe(sealed);
    const place = setAside(dataDir, 0);
    expect(existsSync(join(place, 'ca/keys/x509-1.key'))).toBe(true);
    expect(await seed(dataDir, replica, blobs)).toBe(false);
    await leadership.resign();
  });

  test('gives it no key that is not encrypted', async () => {
    const dataDir = ownState('-----BEGIN PRIVATE KEY-----');
    const leadership = (await Leadership.attempt(store, 2, 'here', 0, quiet))!;
    const blobs = etcdKeyBlobs(store, leadership.condition);
    await expect(seed(dataDir, follow(), blobs)).rejects.toThrow(
      /x509-1\.key is not encrypted, so it is not given to etcd/,
    );
    expect(await blobs.list()).toEqual([]);
    await leadership.resign();
  });
});

test('credentials for etcd are read from files that are nobody else’s', () => {
  const passwordFile = join(dir, 'password');
  writeFileSync(passwordFile, 'secret', { mode: 0o644 });
  const open = () => new EtcdStore({ ...config, auth: { username: 'countersign', passwordFile } });
  expect(open).toThrow(/chmod 600/);
  expect(readFileSync(passwordFile, 'utf8')).toBe('secret');
});

test('while etcd is away an answer is refused in time, and the lead is lost with it', async () => {
  const { log, put, leadership } = await lead();
  await log.durable();
  await etcd.down();
  put('a');
  const begun = performance.now();
  await expect(log.durable()).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(/etcd|does not lead/),
  });
  expect(performance.now() - begun).toBeLessThan(6000);
  await eventually('the lead to be lost', () => leadership.lost.aborted);
  await etcd.up();
}, 20_000);
