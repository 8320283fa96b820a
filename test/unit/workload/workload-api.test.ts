import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, readlinkSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SpiffeWorkloadAPIClient } from '../../../proto/gen/spiffe/workload/workload.ts';
import { createLogger } from '../../../src/base/log.ts';
import {
  type FetchedSvid,
  fetchX509Svid,
  fetchX509Svids,
  type SvidWatch,
  watchX509Svids,
} from '../../../src/workload/client.ts';
import { startWorkloadApi } from '../../../src/workload/workload-api.ts';
import {
  bundle,
  element,
  entry,
  isRoot,
  NOW_MS,
  openStage,
  ownGid,
  ownUid,
  type Stage,
  svid,
  TestFeed,
  until,
} from './stage.ts';

const OWN = `unix:uid:${ownUid}`;
const SOMEBODY = 54_321;
const NOBODY_ELSE = 54_322;

let stage: Stage;
const clients: { close(): void }[] = [];
beforeEach(async () => {
  stage = await openStage({ callsPerUid: 8 });
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await stage.clear();
});

/** Awaitable: what a watch is told, in order. */
function watch() {
  const told: (FetchedSvid[] | Error)[] = [];
  let wake = () => {};
  const tell = (value: FetchedSvid[] | Error) => {
    told.push(value);
    wake();
  };
  const handle: SvidWatch = watchX509Svids(stage.socketPath, tell, tell);
  clients.push(handle);
  const next = async (): Promise<FetchedSvid[] | Error> => {
    while (told.length === 0) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return told.shift()!;
  };
  return { ...handle, next, told };
}

function rawClient() {
  const client = new SpiffeWorkloadAPIClient(`unix:${stage.socketPath}`, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
  });
  clients.push(client);
  return client;
}
function metadata(...values: string[]): Metadata {
  const result = new Metadata();
  for (const value of values) result.add('workload.spiffe.io', value);
  return result;
}
function errorOf(call: { on(event: string, listener: (value: unknown) => void): unknown }): Promise<ServiceError> {
  return new Promise((resolve) => {
    call.on('data', () => {});
    call.on('error', (error) => resolve(error as ServiceError));
  });
}

describe('the Workload API', () => {
  it('gives a caller its SVID: chain, key and bundle as DER, byte for byte', async () => {
    stage.feed.add('web', OWN, `unix:gid:${ownGid}`);
    const got = await fetchX509Svid(stage.socketPath);
    expect(got.spiffeId).toBe('spiffe://example.org/web');
    expect(got.chain).toEqual([element('web 1'), element('intermediate')]);
    expect(got.bundle).toEqual(bundle.authorities);
    expect(got.privateKey.equals(stage.feed.svids.get('web')!.privateKey)).toBe(true);
  });

  it('gives all identities of a caller, the first entry as the default, and none of another', async () => {
    stage.feed.add('other', `unix:uid:${ownUid + 1}`);
    stage.feed.add('first', OWN);
    stage.feed.add('half', OWN, 'unix:gid:99999');
    stage.feed.add('unselective');
    stage.feed.add('second', OWN);
    const ids = (await fetchX509Svids(stage.socketPath)).map((s) => s.spiffeId);
    expect(ids).toEqual(['spiffe://example.org/first', 'spiffe://example.org/second']);
  });

  it('pushes the whole new state on rotation, at once, and nothing when nothing changed for the caller', async () => {
    stage.feed.add('web', OWN);
    const { next, told } = watch();
    await next();
    stage.feed.changed();
    stage.feed.add('other', 'unix:uid:1');
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    expect(((await next()) as FetchedSvid[])[0]?.chain[0]).toEqual(element('web 2'));
    stage.feed.add('more', OWN);
    expect(((await next()) as FetchedSvid[]).map((s) => s.spiffeId)).toHaveLength(2);
    expect(told).toEqual([]);
  });

  it('ends the stream with PermissionDenied when the entry is removed', async () => {
    stage.feed.add('web', OWN);
    const { next } = watch();
    await next();
    stage.feed.entries = [];
    stage.feed.changed();
    expect(await next()).toMatchObject({ code: 'permission-denied' });
    await until(() => stage.api.load.streams === 0);
  });

  it('answers Unavailable while the agent starts, while no SVID is issued and once it has ended', async () => {
    stage.feed.starting = true;
    await expect(fetchX509Svid(stage.socketPath)).rejects.toMatchObject({ code: 'unavailable' });
    stage.feed.starting = false;
    stage.feed.add('web', OWN);
    stage.feed.svids.clear();
    await expect(fetchX509Svid(stage.socketPath)).rejects.toMatchObject({ code: 'unavailable' });
    stage.feed.svids.set('web', svid('web', 1, NOW_MS));
    await expect(fetchX509Svid(stage.socketPath)).rejects.toThrow(/no valid SVID now/);
    stage.feed.svids.set('web', svid('web', 1, NOW_MS + 1));
    await fetchX509Svid(stage.socketPath);
  });

  it('holds a stream while an SVID is on its way, at the start and when the one it had is taken back', async () => {
    await stage.clear();
    stage = await openStage({ issueWaitMs: 60_000 });
    stage.feed.entries = [entry('web', OWN)];
    const { next, told } = watch();
    await until(() => stage.feed.asked === 1);
    stage.feed.svids.set('web', svid('web', 1));
    stage.feed.changed();
    expect(((await next()) as FetchedSvid[])[0]?.chain[0]).toEqual(element('web 1'));
    stage.feed.svids.delete('web');
    stage.feed.changed();
    await until(() => stage.feed.asked === 3);
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    expect(((await next()) as FetchedSvid[])[0]?.chain[0]).toEqual(element('web 2'));
    expect(told).toEqual([]);
  });

  it.each([
    ['missing', []],
    ['of another value', ['True']],
    ['there twice', ['true', 'true']],
  ])('answers InvalidArgument when the security header is %s, in every call', async (_name, values) => {
    stage.feed.add('web', OWN);
    const client = rawClient();
    const header = metadata(...values);
    const unary = (call: (done: (error: unknown) => void) => void) => new Promise<unknown>((resolve) => call(resolve));
    const errors = [
      await errorOf(client.fetchX509Svid({}, header)),
      await errorOf(client.fetchX509Bundles({}, header)),
      await errorOf(client.fetchJwtBundles({}, header)),
      await unary((done) => client.fetchJwtsvid({ audience: [], spiffeId: '' }, header, done)),
      await unary((done) => client.validateJwtsvid({ audience: '', svid: '' }, header, done)),
    ];
    expect(errors.map((error) => (error as ServiceError).code)).toEqual(Array(5).fill(status.INVALID_ARGUMENT));
    expect(stage.events.every((event) => event.reason === 'WORKLOAD_HEADER_MISSING')).toBe(true);
  });

  it('streams the bundle of the caller’s own trust domain, and pushes a new one', async () => {
    stage.feed.add('web', OWN);
    stage.feed.svids.clear();
    const call = rawClient().fetchX509Bundles({}, metadata('true'));
    call.on('error', () => {});
    const updates = call[Symbol.asyncIterator]();
    expect((await updates.next()).value.bundles).toEqual({ 'spiffe://example.org': element('root') });
    stage.feed.bundles = [{ ...bundle, authorities: [element('root'), element('next')] }];
    stage.feed.changed();
    const second = Buffer.concat([element('root'), element('next')]);
    expect((await updates.next()).value.bundles).toEqual({ 'spiffe://example.org': second });
  });

  it('limits the streams of one user, and gives the place back', async () => {
    stage.feed.add('web', OWN);
    const watches = Array.from({ length: 8 }, () => watch());
    for (const { next } of watches) await next();
    await expect(fetchX509Svid(stage.socketPath)).rejects.toMatchObject({ code: 'exhausted' });
    watches[0]?.close();
    await until(() => stage.api.load.streams === 7);
    await fetchX509Svid(stage.socketPath);
  });

  it('forgets closed clients: no stream, connection or descriptor is left', async () => {
    stage.feed.add('web', OWN);
    const isPidfd = (fd: string) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).includes('pidfd');
      } catch {
        return false; // closed meanwhile
      }
    };
    const pidfds = () => readdirSync('/proc/self/fd').filter(isPidfd).length;
    await fetchX509Svid(stage.socketPath);
    await until(() => stage.api.load.connections === 0);
    const before = pidfds();
    for (let i = 0; i < 20; i++) await fetchX509Svid(stage.socketPath);
    const open = watch();
    await open.next();
    expect(pidfds()).toBe(before + 1);
    open.close();
    await until(() => stage.api.load.connections === 0 && stage.api.load.streams === 0);
    expect(pidfds()).toBe(before);
  });

  it('stays up for others when a client sends garbage, or nothing and goes', async () => {
    stage.feed.add('web', OWN);
    const garbage = connect(stage.socketPath, () => garbage.write('GET / HTTP/1.1\r\n\r\n'));
    garbage.on('error', () => {}).resume();
    await new Promise((resolve) => garbage.once('close', resolve));
    connect(stage.socketPath).on('connect', function (this: { destroy(): void }) {
      this.destroy();
    });
    await fetchX509Svid(stage.socketPath);
    await until(() => stage.api.load.connections === 0);
  });

  it('knows a program by its path and digest', async () => {
    const program = realpathSync(process.execPath);
    const digest = createHash('sha256').update(readFileSync(program)).digest('hex');
    stage.feed.add('by-path', OWN, `unix:path:${program}`);
    stage.feed.add('by-digest', `unix:sha256:${digest}`);
    stage.feed.add('other-path', OWN, 'unix:path:/bin/sh');
    stage.feed.add('other-digest', `unix:sha256:${'0'.repeat(64)}`);
    const ids = (await fetchX509Svids(stage.socketPath)).map((s) => s.spiffeId);
    expect(ids).toEqual(['spiffe://example.org/by-path', 'spiffe://example.org/by-digest']);
  });

  it('writes what was given and refused into the audit log, once a minute for the same caller', async () => {
    await expect(fetchX509Svid(stage.socketPath)).rejects.toThrow(/no identity issued/);
    stage.feed.add('web', OWN);
    for (let i = 0; i < 5; i++) await fetchX509Svid(stage.socketPath);
    expect(stage.events).toMatchObject([
      { kind: 'workload.refused', reason: 'WORKLOAD_NO_IDENTITY', actor: `uid:${ownUid}` },
      { kind: 'workload.attested', source: { spiffeId: 'spiffe://example.org/web' }, detail: { pid: process.pid } },
    ]);
    stage.clock.ns += 60n * 1_000_000_000n;
    await fetchX509Svid(stage.socketPath);
    expect(stage.events[2]).toMatchObject({ kind: 'workload.attested', detail: { suppressed: 4 } });
  });

  it('closes: streams end, the socket goes, and a killed predecessor’s socket is no hindrance', async () => {
    stage.feed.add('web', OWN);
    const { next } = watch();
    await next();
    await stage.api.close();
    expect(await next()).toMatchObject({ code: 'unavailable' });
    expect(() => statSync(stage.socketPath)).toThrow('ENOENT');
    expect(stage.feed.listeners.size).toBe(0);
    await expect(fetchX509Svid(stage.socketPath)).rejects.toThrow(/nobody serves there/);
  });

  it('has a socket that everybody may open, and takes neither a live one nor another file in its place', async () => {
    expect(statSync(stage.socketPath).mode & 0o777).toBe(0o666);
    const start = (socketPath: string) =>
      startWorkloadApi({
        socketPath,
        feed: new TestFeed(),
        audit: { emit: () => {} },
        clock: { nowMs: () => 0, bootNs: () => 0n },
        log: createLogger('test', 'silent'),
      });
    await expect(start(stage.socketPath)).rejects.toMatchObject({ code: 'already-exists' });
    const file = join(stage.directory, 'file');
    writeFileSync(file, 'precious');
    await expect(start(file)).rejects.toMatchObject({ code: 'bad-input' });
    expect(readFileSync(file, 'utf8')).toBe('precious');
    await expect(start(`/tmp/${'x'.repeat(120)}`)).rejects.toThrow(/at most 107 bytes/);
    const stale = join(stage.directory, 'stale.sock');
    const leave = `require('net').createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, 'SIGKILL'))`;
    expect(() => execFileSync(process.execPath, ['-e', leave])).toThrow();
    expect(statSync(stale).isSocket()).toBe(true);
    await (await start(stale)).close();
  });
});

describe.skipIf(!isRoot)(`workloads of other users${isRoot ? '' : ' (skipped: only root can start them)'}`, () => {
  it('get their own identity and no other, and one that no entry names gets PermissionDenied', async () => {
    stage.feed.add('root', OWN);
    stage.feed.add('somebody', `unix:uid:${SOMEBODY}`);
    const [known, unknown] = [stage.workload(SOMEBODY), stage.workload(NOBODY_ELSE)];
    expect(await known.next()).toEqual({ ids: ['spiffe://example.org/somebody'] });
    expect(await unknown.next()).toMatchObject({ refused: 'permission-denied' });
    expect(stage.events).toContainEqual(
      expect.objectContaining({
        kind: 'workload.refused',
        reason: 'WORKLOAD_NO_IDENTITY',
        actor: `uid:${NOBODY_ELSE}`,
      }),
    );
  });

  it('are each told of their own rotation, and forgotten when killed', async () => {
    stage.feed.add('one', `unix:uid:${SOMEBODY}`);
    stage.feed.add('two', `unix:uid:${NOBODY_ELSE}`);
    const [one, two] = [stage.workload(SOMEBODY), stage.workload(NOBODY_ELSE)];
    expect([await one.next(), await two.next()]).toEqual([
      { ids: ['spiffe://example.org/one'] },
      { ids: ['spiffe://example.org/two'] },
    ]);
    stage.feed.entries = stage.feed.entries.filter((e) => e.id !== 'one');
    stage.feed.changed();
    expect(await one.next()).toMatchObject({ refused: 'permission-denied' });
    await two.kill();
    await until(() => stage.api.load.streams === 0 && stage.api.load.connections === 0);
  });
});
