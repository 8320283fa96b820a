import { execFileSync, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { createLogger } from '../../../src/base/log.ts';
import { attestBy } from '../../../src/workload/attest.ts';
import type { WorkloadAttestor } from '../../../src/workload/attestors/attestor.ts';
import type { Caller } from '../../../src/workload/callers.ts';
import { fetchX509Svids } from '../../../src/workload/client.ts';
import { createRareLog } from '../../../src/workload/rare-log.ts';
import { entry, isRoot, openStage, ownGid, ownUid, type Stage } from './stage.ts';

const log = createRareLog(createLogger('test', 'silent'), { nowMs: () => 0, bootNs: () => 0n });
const OWN = `unix:uid:${ownUid}`;

let stage: Stage | undefined;
afterEach(async () => {
  await stage?.clear();
  stage = undefined;
});

describe('the entries of a process', () => {
  const caller: Caller = { name: 'caller-1', pid: 1, uid: 1000, gid: 1000, isAlive: () => true };
  const saying = (type: string, ...selectors: string[]): WorkloadAttestor & { asked: string[][] } => ({
    type,
    asked: [],
    async selectorsOf(_caller, wanted) {
      this.asked.push([...wanted]);
      return selectors;
    },
  });
  const failing = (type: string): WorkloadAttestor => ({
    type,
    selectorsOf: () => Promise.reject(new Error('it is down')),
  });
  const ids = async (attestors: WorkloadAttestor[], ...entries: ReturnType<typeof entry>[]) => {
    const found = await attestBy(attestors, 1_000, log).entriesOf(caller, entries);
    return found.ok ? found.value.map(({ id }) => id) : found.error;
  };

  it('are those whose every selector some attestor gives; each attestor is asked only for what an entry needs', async () => {
    const unix = saying('unix', 'unix:uid:1000', 'unix:gid:1000');
    const docker = saying('docker', 'docker:label:app:web');
    const entries = [
      entry('a', 'unix:uid:1000', 'docker:label:app:web'),
      entry('b', 'unix:uid:1000', 'docker:label:app:db'),
      entry('c', 'unix:uid:1000', 'k8s:ns:prod'),
    ];
    expect(await ids([unix, docker], ...entries)).toEqual(['a']);
    expect(docker.asked).toEqual([['docker:label:app:web', 'docker:label:app:db']]);
    // the kernel has said that it is another user: nobody else is asked
    expect(await ids([unix, docker], entry('d', 'unix:uid:7', 'docker:label:app:web'))).toEqual([]);
    expect(docker.asked).toHaveLength(1);
  });

  it('are not known while an attestor fails on whose word alone one hangs: no lesser identity is given instead', async () => {
    const unix = saying('unix', 'unix:uid:1000');
    const [plain, labelled] = [entry('plain', 'unix:uid:1000'), entry('x', 'unix:uid:1000', 'docker:label:a:b')];
    expect(await ids([unix, failing('docker')], plain, labelled)).toBe('failed');
    expect(await ids([unix, failing('docker')], plain)).toEqual(['plain']);
    // what fails cannot make the second one his
    expect(await ids([unix, failing('docker')], plain, entry('y', 'unix:path:/x', 'docker:label:a:b'))).toEqual([
      'plain',
    ]);
  });

  it('are not waited for beyond the deadline', async () => {
    let aborted = false;
    const silent: WorkloadAttestor = {
      type: 'docker',
      selectorsOf: (_caller, _wanted, signal) =>
        new Promise(() => {
          signal.addEventListener('abort', () => {
            aborted = true;
          });
        }),
    };
    const found = await attestBy([silent], 10, log).entriesOf(caller, [entry('x', 'docker:label:a:b')]);
    expect([found.ok, aborted]).toEqual([false, true]);
  });

  it('are none once it has ended, whatever attestors say', async () => {
    const gone = { ...caller, isAlive: () => false };
    const found = await attestBy([saying('unix', 'unix:uid:1000')], 1_000, log).entriesOf(gone, [
      entry('a', 'unix:uid:1000'),
    ]);
    expect(found).toEqual({ ok: true, value: [] });
  });
});

describe('unix selectors', () => {
  const nameIn = (file: string, id: number) =>
    readFileSync(file, 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .find((fields) => fields[2] === String(id))?.[0];

  it('name the user and the group as this host does', async () => {
    stage = await openStage();
    stage.feed.add('user', OWN, `unix:user:${nameIn('/etc/passwd', ownUid)}`);
    stage.feed.add('group', `unix:group:${nameIn('/etc/group', ownGid)}`);
    stage.feed.add('other', 'unix:user:nobody');
    const ids = (await fetchX509Svids(stage.socketPath)).map(({ spiffeId }) => spiffeId);
    expect(ids).toEqual(['spiffe://example.org/user', 'spiffe://example.org/group']);
  });

  if (isRoot) {
    it('name supplementary groups by number and name, of a process that has them', async () => {
      stage = await openStage();
      stage.feed.add('daemon', 'unix:uid:54321', 'unix:supplementary_gid:1', 'unix:supplementary_group:daemon');
      stage.feed.add('number', 'unix:uid:54321', 'unix:supplementary_gid:77777');
      stage.feed.add('primary', 'unix:uid:54321', 'unix:supplementary_gid:54321');
      const script = `${import.meta.dirname}/watch-svids.ts`;
      const identity = ['--reuid', '54321', '--regid', '54321', '--groups', '1,77777'];
      const child = spawn('setpriv', [...identity, process.execPath, script, stage.socketPath], { cwd: '/' });
      const line = await new Promise<string>((resolve) => child.stdout.once('data', (data) => resolve(String(data))));
      child.kill('SIGKILL');
      expect(JSON.parse(line).ids).toEqual(['spiffe://example.org/daemon', 'spiffe://example.org/number']);
    });
  }
});

describe('a process that connected and ended', () => {
  it('is known by the socket, not by whoever has its pid now', async () => {
    stage = await openStage();
    stage.feed.add('web', OWN);
    // its connection is accepted only when this process comes back to its event loop; by then it has long ended
    const connect = `require('net').connect(${JSON.stringify(stage.socketPath)}, () => process.exit(0))`;
    execFileSync(process.execPath, ['-e', connect]);
    await fetchX509Svids(stage.socketPath);
    expect(stage.api.load.connections).toBeLessThanOrEqual(1);
  });
});
