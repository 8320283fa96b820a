// Real processes in real control groups, as container runtimes and systemd make them. Only root may make any.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, rmdirSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseMounts } from '../../../src/workload/attestors/cgroup.ts';
import { isRoot, openStage, type Stage, svid } from './stage.ts';
import { systemBus } from './system-bus.ts';

const WEB = 54_321;
const mounts = parseMounts(readFileSync('/proc/self/mountinfo', 'utf8'));
/** One of each kind that this machine has and lets root make groups in. */
const hierarchies = [
  ['version 2', mounts.get('')],
  ['version 1', mounts.get('pids')],
].filter((pair): pair is [string, string] => isRoot && pair[1] !== undefined && mayMake(pair[1]));
const systemdHierarchy = isRoot ? (mounts.get('name=systemd') ?? mounts.get('')) : undefined;

function mayMake(mount: string): boolean {
  const probe = join(mount, `cs-probe-${process.pid}`);
  try {
    mkdirSync(probe);
    rmdirSync(probe);
    return true;
  } catch {
    return false;
  }
}

let stage: Stage;
let made: string[];
let children: ChildProcess[];
let docker: { server: Server; asked: string[]; answer: (id: string) => [number, object] };
beforeEach(async () => {
  [made, children] = [[], []];
  docker = { server: createServer(), asked: [], answer: (id) => [200, containerJson(id)] };
  docker.server.on('request', (request, response) => {
    docker.asked.push(`${request.method} ${request.url}`);
    const [status, body] = docker.answer(/\/containers\/(.*)\/json/.exec(request.url!)![1]!);
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  });
  const socket = `/tmp/cs-docker-${process.pid}-${randomBytes(4).toString('hex')}.sock`;
  await new Promise<void>((resolve) => docker.server.listen(socket, resolve));
  stage = await openStage(undefined, { dockerSocket: socket, deadlineMs: 2_000 });
});
afterEach(async () => {
  for (const child of children) {
    child.kill('SIGKILL');
    await new Promise((resolve) =>
      child.exitCode === null && child.signalCode === null ? child.once('exit', resolve) : resolve(0),
    );
  }
  await stage.clear();
  await new Promise((resolve) => docker.server.close(resolve));
  for (const directory of made.reverse()) remove(directory);
});

/** A zombie's place is given back a moment after it was reaped. */
function remove(directory: string): void {
  for (let tries = 0; ; tries++) {
    try {
      rmdirSync(directory);
      return;
    } catch (error) {
      if (tries === 200 || (error as NodeJS.ErrnoException).code !== 'EBUSY') return;
      execFileSync('sleep', ['0.01']);
    }
  }
}

function group(mount: string, path: string, owner = 0): string {
  const directory = join(mount, path);
  for (const missing of missingOf(directory)) {
    mkdirSync(missing);
    made.push(missing);
    if (owner !== 0) chownSync(missing, owner, owner);
  }
  return directory;
}
function missingOf(directory: string): string[] {
  return existsSync(directory) ? [] : [...missingOf(dirname(directory)), directory];
}

async function firstLine({ stdout }: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: stdout! })) return line;
  throw new Error('nothing was printed');
}

/** What a process in that control group is told first. */
async function toldIn(directory: string, socketPath = stage.socketPath): Promise<{ ids?: string[]; refused?: string }> {
  const script = join(import.meta.dirname, 'watch-svids.ts');
  const user = ['--reuid', String(WEB), '--regid', String(WEB), '--clear-groups'];
  const command = 'echo $$ > "$0/cgroup.procs" && exec setpriv "$@"';
  const child = spawn('sh', ['-c', command, directory, ...user, process.execPath, script, socketPath], {
    cwd: '/',
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.push(child);
  return JSON.parse(await firstLine(child));
}

const containerJson = (id: string) => ({
  Id: id,
  Image: 'sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
  Config: { Image: 'example/web:1', Labels: { 'com.example.name': 'web' }, Env: ['STAGE=prod'] },
});
const newId = () => randomBytes(32).toString('hex');
const name = (told: { ids?: string[] }) => told.ids?.map((id) => id.replace('spiffe://example.org/', ''));

for (const [kind, mount] of hierarchies) {
  describe(`a process in a container, control groups ${kind}`, () => {
    it('has the selectors that Docker gives it, and its id', async () => {
      const id = newId();
      stage.feed.add('label', `unix:uid:${WEB}`, 'docker:label:com.example.name:web');
      stage.feed.add('env', 'docker:env:STAGE=prod', 'docker:image_id:example/web:1');
      stage.feed.add('digest', `docker:image_config_digest:${containerJson('').Image}`);
      stage.feed.add('id', `container:id:${id}`, 'container:runtime:docker');
      stage.feed.add('other', 'docker:label:com.example.name:db');
      expect(name(await toldIn(group(mount, `docker/${id}`)))).toEqual(['label', 'env', 'digest', 'id']);
      expect(docker.asked).toEqual([`GET /containers/${id}/json`]);
      stage.feed.svids.set('label', svid('label', 2));
      stage.feed.changed();
      expect(docker.asked).toHaveLength(1);
    });

    it('is that of the node in kind, when the agent runs beside Docker', async () => {
      const [node, inner] = [newId(), newId()];
      const pod = 'kubelet/kubepods/burstable/pod72f9f152-440c-66ac-9084-e0fc1d8a910c';
      stage.feed.add('node', `container:id:${node}`);
      stage.feed.add('pod', `container:id:${inner}`);
      expect(name(await toldIn(group(mount, `docker/${node}/${pod}/${inner}`)))).toEqual(['node']);
    });

    it('is its own to an agent that runs in the container around it, as on a node of kind', async () => {
      const [node, inner, sibling] = [newId(), newId(), newId()];
      const pod = `docker/${node}/kubelet/kubepods/burstable/pod72f9f152-440c-66ac-9084-e0fc1d8a910c`;
      const script = join(import.meta.dirname, 'agent-in-container.ts');
      const args = [
        script,
        group(mount, `${pod}/${sibling}`),
        `node=container:id:${node}`,
        `pod=container:id:${inner}`,
      ];
      const agent = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
      children.push(agent);
      const socketPath = (await firstLine(agent)).trim();
      expect(name(await toldIn(group(mount, `${pod}/${inner}`), socketPath))).toEqual(['pod']);
      agent.stdin.end();
      await new Promise((resolve) => agent.once('exit', resolve));
    });

    it('has none in a group of that name that somebody else than root could make', async () => {
      const id = newId();
      stage.feed.add('id', `container:id:${id}`);
      stage.feed.add('label', 'docker:label:com.example.name:web');
      // as if a pod's group had been delegated to a user, who then makes what he likes in it
      const pod = `kubepods/pod${randomUUID()}`;
      const directory = group(mount, `${pod}/${id}`);
      chownSync(join(mount, pod), WEB, WEB);
      expect(await toldIn(directory)).toMatchObject({ refused: 'permission-denied' });
      chownSync(join(mount, pod), 0, 0);
      chmodSync(join(mount, pod), 0o777);
      expect(await toldIn(directory)).toMatchObject({ refused: 'permission-denied' });
      expect(docker.asked).toEqual([]);
    });

    it('has none in a unit or group that only looks like one', async () => {
      const id = newId();
      stage.feed.add('id', `container:id:${id}`);
      stage.feed.add('label', 'docker:label:com.example.name:web');
      for (const path of [`cs-${process.pid}.slice/docker/${id}`, `cs-${process.pid}.slice/docker-${id}.scope`]) {
        expect(await toldIn(group(mount, path))).toMatchObject({ refused: 'permission-denied' });
      }
      expect(docker.asked).toEqual([]);
    });

    it('is told to come again when Docker does not answer or answers nonsense, and refused when it knows no such one', async () => {
      stage.feed.add('plain', `unix:uid:${WEB}`);
      stage.feed.add('label', `unix:uid:${WEB}`, 'docker:label:com.example.name:web');
      const directory = group(mount, `docker/${newId()}`);
      docker.answer = () => [500, {}];
      expect(await toldIn(directory)).toMatchObject({ refused: 'unavailable' });
      docker.answer = () => [200, containerJson(newId())];
      expect(await toldIn(directory)).toMatchObject({ refused: 'unavailable' });
      expect(stage.events.at(-1)).toMatchObject({ kind: 'workload.refused', reason: 'WORKLOAD_NOT_ATTESTED' });
      docker.answer = () => [404, { message: 'No such container' }];
      expect(name(await toldIn(directory))).toEqual(['plain']);
    });
  });
}

if (hierarchies.length === 2) {
  describe('a process in two hierarchies', () => {
    it('is in no container when they name different ones', async () => {
      const [one, other] = [newId(), newId()];
      stage.feed.add('one', `container:id:${one}`);
      stage.feed.add('plain', `unix:uid:${WEB}`);
      const [first, second] = hierarchies.map(([, mount], i) => group(mount, `docker/${[one, other][i]}`));
      // the second one is joined by the shell before the first
      const procs = `${second}/cgroup.procs`;
      const script = join(import.meta.dirname, 'watch-svids.ts');
      const command = 'echo $$ > "$0/cgroup.procs" && echo $$ > "$1" && shift && exec setpriv "$@"';
      const user = ['--reuid', String(WEB), '--regid', String(WEB), '--clear-groups'];
      const child = spawn('sh', ['-c', command, first!, procs, ...user, process.execPath, script, stage.socketPath], {
        cwd: '/',
        stdio: ['pipe', 'pipe', 'inherit'],
      });
      children.push(child);
      expect(JSON.parse(await firstLine(child))).toMatchObject({ refused: 'unavailable' });
    });
  });
}

if (systemdHierarchy !== undefined && mayMake(systemdHierarchy)) {
  describe('a process in a unit of systemd', () => {
    const unit = `cs-web-${process.pid}.service`;

    it('has the unit’s id, and that of the user’s manager for whatever a user names so', async () => {
      stage.feed.add('unit', `systemd:id:${unit}`);
      stage.feed.add('user', 'systemd:id:user@54321.service');
      expect(name(await toldIn(group(systemdHierarchy, `system.slice/${unit}`)))).toEqual(['unit']);
      const delegated = group(systemdHierarchy, `user.slice/user-${WEB}.slice/user@${WEB}.service/app.slice/${unit}`);
      expect(name(await toldIn(delegated))).toEqual(['user']);
    });

    it('has none in a directory that somebody else than root could make', async () => {
      stage.feed.add('unit', `systemd:id:${unit}`);
      const directory = group(systemdHierarchy, `cs-${process.pid}.slice/${unit}`, WEB);
      expect(await toldIn(directory)).toMatchObject({ refused: 'permission-denied' });
    });

    it('has the path of the unit’s file as systemd says it, and is told to come again while systemd says nothing', async () => {
      const path = `/etc/systemd/system/${unit}`;
      const bus = await systemBus({ [unit]: path });
      await stage.clear();
      stage = await openStage(undefined, { systemBus: bus.socketPath, deadlineMs: 2_000 });
      stage.feed.add('file', `systemd:fragment_path:${path}`);
      stage.feed.add('other', `systemd:fragment_path:/tmp/${unit}`);
      const directory = group(systemdHierarchy, `system.slice/${unit}`);
      expect(name(await toldIn(directory))).toEqual(['file']);
      await bus.close();
      rmSync(bus.socketPath, { force: true });
      expect(await toldIn(directory)).toMatchObject({ refused: 'unavailable' });
    });
  });
}
