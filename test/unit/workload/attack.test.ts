import { spawn } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, it } from 'vitest';
import { fetchX509Svid } from '../../../src/workload/client.ts';
import { isRoot, openStage, ownUid, type Stage, svid, until } from './stage.ts';

const OWN = `unix:uid:${ownUid}`;
const PERMISSION_DENIED = 7;

let stage: Stage;
afterEach(() => stage.clear());

/** The first line a command prints, as JSON. */
async function firstLine(command: string, args: string[]): Promise<unknown> {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  for await (const line of createInterface({ input: child.stdout })) {
    child.stdin.end();
    return JSON.parse(line);
  }
  throw new Error('nothing was printed');
}

describe('somebody who wants an identity that is not his', () => {
  it('gets nothing on a connection whose process has ended, though he holds its descriptor', async () => {
    stage = await openStage();
    stage.feed.add('web', OWN);
    const script = join(import.meta.dirname, 'inherited-socket.ts');
    expect(await firstLine(process.execPath, [script, stage.socketPath])).toEqual({
      status: PERMISSION_DENIED,
      bytes: 0,
    });
  });

  it('cannot keep others out by connections that say nothing, those of his own user included', async () => {
    stage = await openStage({ connections: 6, connectionsPerUid: 4 });
    stage.feed.add('web', OWN);
    const silent: Socket[] = [];
    for (let i = 0; i < 4; i++) silent.push(connect(stage.socketPath));
    await until(() => stage.api.load.connections === 4);
    await fetchX509Svid(stage.socketPath);
    expect(stage.api.load.connections).toBeLessThanOrEqual(4);
    if (isRoot) {
      stage.feed.add('somebody', 'unix:uid:54321');
      expect(await stage.workload(54_321).next()).toEqual({ ids: ['spiffe://example.org/somebody'] });
    }
    for (const socket of silent) socket.destroy();
  });

  it('cannot keep others out by calls in which he asks nothing, or for what needs no identity', async () => {
    stage = await openStage({ connections: 6, connectionsPerUid: 4 });
    const open = (path: string) => {
      const session = connectHttp2('http://localhost', { createConnection: () => connect(stage.socketPath) });
      session.on('error', () => {});
      const call = session.request({
        ':method': 'POST',
        ':path': path,
        'content-type': 'application/grpc',
        te: 'trailers',
        'workload.spiffe.io': 'true',
      });
      call.on('error', () => {});
      return call;
    };
    open('/SpiffeWorkloadAPI/FetchX509SVID');
    open('/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets');
    open('/grpc.reflection.v1.ServerReflection/ServerReflectionInfo');
    open('/grpc.health.v1.Health/Watch').write(Buffer.alloc(5));
    await until(() => stage.api.load.calls === 4);
    stage.feed.add('web', OWN);
    await fetchX509Svid(stage.socketPath);
    expect(stage.api.load.connections).toBeLessThanOrEqual(4);
    // in use by somebody with an identity, they give way to nobody
    const watches = Array.from({ length: 4 }, () => stage.workload(ownUid));
    for (const workload of watches) await workload.next();
    await expect(fetchX509Svid(stage.socketPath)).rejects.toMatchObject({ code: 'unavailable' });
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    for (const workload of watches) await workload.next();
  });

  it.skipIf(!isRoot)('gets no unix:path by a mount namespace in which his program bears that name', async () => {
    stage = await openStage();
    const name = realpathSync('/bin/true');
    stage.feed.add('web', OWN, `unix:path:${name}`);
    const script = join(import.meta.dirname, 'watch-svids.ts');
    const trick = `mount --bind ${realpathSync(process.execPath)} ${name} && exec ${name} ${script} ${stage.socketPath}`;
    const told = await firstLine('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', trick]);
    expect(told).toMatchObject({ refused: 'permission-denied' });
  });
});
