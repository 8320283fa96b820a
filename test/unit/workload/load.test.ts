import { type ChildProcess, spawn } from 'node:child_process';
import { type ClientHttp2Session, connect as connectHttp2, type Settings } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type ClientReadableStream, type ServiceError, status } from '@grpc/grpc-js';
import { afterEach, describe, expect, it } from 'vitest';
import { SpiffeWorkloadAPIClient, type X509SVIDResponse } from '../../../proto/gen/spiffe/workload/workload.ts';
import { fetchX509Svid } from '../../../src/workload/client.ts';
import { answerOf, clientOf, isRoot, openStage, ownUid, type Stage, security, svid, until } from './stage.ts';

const OWN = `unix:uid:${ownUid}`;

let stage: Stage;
const clients: { close(): void }[] = [];
const children: ChildProcess[] = [];
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  for (const child of children.splice(0)) child.kill('SIGKILL');
  await stage.clear();
});

function client() {
  const made = clientOf(SpiffeWorkloadAPIClient, stage);
  clients.push(made);
  return made;
}

describe('a thousand open streams', () => {
  it('are all told of a rotation, in bounded time, while others are served', async () => {
    stage = await openStage();
    stage.feed.add('web', OWN);
    const serials = new Array<number>(1_000).fill(0);
    const shared = Array.from({ length: 10 }, client);
    for (let i = 0; i < 1_000; i++) {
      const call: ClientReadableStream<X509SVIDResponse> = shared[i % 10]!.fetchX509Svid({}, security());
      call.on('error', () => {});
      call.on('data', ({ svids }) => {
        serials[i] = Number(/web (\d)/.exec(svids[0]!.x509Svid.toString('latin1'))![1]);
      });
    }
    await until(() => serials.every((serial) => serial === 1));
    expect(stage.api.load).toEqual({ connections: 10, calls: 1_000, streams: 1_000 });
    const before = performance.now();
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    const newcomer = fetchX509Svid(stage.socketPath).then(() => performance.now() - before);
    await until(() => serials.every((serial) => serial === 2));
    const tookMs = performance.now() - before;
    // an order of magnitude above what it takes here, server and clients in one process
    expect(tookMs).toBeLessThan(10_000);
    expect(await newcomer).toBeLessThan(10_000);
  });
});

describe('a caller who opens too much', () => {
  it('has 2,000 connections give way to each other, and keeps nobody out', async () => {
    stage = await openStage({ connections: 1_500 });
    stage.feed.add('web', OWN);
    stage.feed.add('somebody', 'unix:uid:54321');
    const script = join(import.meta.dirname, 'open-connections.ts');
    const other = isRoot ? { uid: 54_322, gid: 54_322 } : {};
    const crowd = spawn(process.execPath, [script, stage.socketPath, '2000'], {
      ...other,
      stdio: ['pipe', 'pipe', 'inherit'],
      cwd: '/',
    });
    children.push(crowd);
    for await (const line of createInterface({ input: crowd.stdout })) {
      expect(line).toBe('opened 2000');
      break;
    }
    expect(stage.api.load.connections).toBeLessThanOrEqual(1_024);
    await fetchX509Svid(stage.socketPath);
    if (isRoot) expect(await stage.workload(54_321).next()).toEqual({ ids: ['spiffe://example.org/somebody'] });
    crowd.kill('SIGKILL');
    await until(() => stage.api.load.connections <= 1);
  });

  it('has as many calls as he is allowed, and loses none of them to the one too many', async () => {
    stage = await openStage({ callsPerUid: 3 });
    stage.feed.add('web', OWN);
    const calls = Array.from({ length: 3 }, () => client().fetchX509Bundles({}, security()));
    const updates = calls.map((call) => call.on('error', () => {})[Symbol.asyncIterator]());
    for (const update of updates) await update.next();
    await expect(fetchX509Svid(stage.socketPath)).rejects.toMatchObject({ code: 'exhausted' });
    stage.feed.bundles = [{ ...stage.feed.bundles[0]!, authorities: [] }, ...stage.feed.bundles.slice(1)];
    calls[0]!.cancel();
    await until(() => stage.api.load.calls === 2);
    stage.feed.changed();
    await updates[1]!.next();
  });

  it('loses calls in which he asks nothing', async () => {
    stage = await openStage({ callsPerUid: 1, requestMs: 100 });
    stage.feed.add('web', OWN);
    const call = rawStream({}, false);
    await until(() => stage.api.load.calls === 1);
    await until(() => stage.api.load.calls === 0);
    await fetchX509Svid(stage.socketPath);
    call.destroy();
  });

  it('is refused while he asks in a loop, and is served again', async () => {
    stage = await openStage({ callRatePerUid: 5 });
    const ask = () =>
      answerOf((done) => client().validateJwtsvid({ audience: '', svid: '' }, security(), done)).catch(
        ({ code }: ServiceError) => code,
      );
    for (let i = 0; i < 10; i++) expect(await ask()).toBe(status.INVALID_ARGUMENT);
    expect(await ask()).toBe(status.RESOURCE_EXHAUSTED);
    stage.clock.ns += 1_000_000_000n;
    expect(await ask()).toBe(status.INVALID_ARGUMENT);
  });
});

describe('a connection', () => {
  const closed = (socket: Socket) => new Promise((resolve) => socket.on('error', () => {}).once('close', resolve));

  it('is closed when nothing is asked on it: without a word, after a preface, and after a call has ended', async () => {
    stage = await openStage({ idleMs: 200 });
    stage.feed.add('web', OWN);
    const silent = connect(stage.socketPath);
    const session = connectHttp2('http://localhost', { createConnection: () => connect(stage.socketPath) });
    session.on('error', () => {});
    // it is told to go, and hears nothing
    const deaf = connect({ path: stage.socketPath, allowHalfOpen: true });
    deaf.on('error', () => {}).pause();
    deaf.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1');
    const asked = client();
    await answerOf((done) => asked.validateJwtsvid({ audience: '', svid: '' }, security(), done)).catch(() => {});
    await closed(silent.resume());
    await until(() => stage.api.load.connections === 0);
    deaf.destroy();
  });

  it('is kept while a stream is open on it, however quiet', async () => {
    stage = await openStage({ idleMs: 50 });
    stage.feed.add('web', OWN);
    const updates = client()
      .fetchX509Svid({}, security())
      .on('error', () => {})
      [Symbol.asyncIterator]();
    await updates.next();
    const silent = connect(stage.socketPath);
    await closed(silent.resume());
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    expect((await updates.next()).value.svids[0].x509Svid.toString('latin1')).toContain('web 2');
  });

  it('whose owner never reads has one message wait for him and no backlog, and holds up nobody', async () => {
    stage = await openStage();
    stage.feed.add('web', OWN);
    const session = rawStream({ initialWindowSize: 0 });
    await until(() => stage.feed.asked === 1);
    for (let serial = 2; serial < 100; serial++) {
      stage.feed.svids.set('web', svid('web', serial));
      stage.feed.changed();
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(stage.feed.asked).toBe(1);
    await fetchX509Svid(stage.socketPath);
    session.destroy();
    await until(() => stage.api.load.calls === 0 && stage.api.load.connections === 0);
    expect(stage.api.load.streams).toBe(0);
  });

  it('that dies in the middle of a stream leaves nothing behind', async () => {
    stage = await openStage();
    stage.feed.add('web', OWN);
    const session = rawStream({});
    await until(() => stage.api.load.streams === 1);
    session.destroy();
    await until(() => stage.api.load.streams === 0 && stage.api.load.calls === 0 && stage.api.load.connections === 0);
    stage.feed.changed();
    await fetchX509Svid(stage.socketPath);
  });
});

/** FetchX509SVID by hand on a connection of its own, whose answers nobody reads. @param asks false: the request is not sent */
function rawStream(settings: Settings, asks = true): ClientHttp2Session {
  const session = connectHttp2('http://localhost', { createConnection: () => connect(stage.socketPath), settings });
  session.on('error', () => {});
  const call = session.request({
    ':method': 'POST',
    ':path': '/SpiffeWorkloadAPI/FetchX509SVID',
    'content-type': 'application/grpc',
    te: 'trailers',
    'workload.spiffe.io': 'true',
  });
  call.on('error', () => {});
  if (asks) call.end(Buffer.alloc(5));
  return session;
}
