import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseCgroups, parseMounts } from '../../../src/workload/attestors/cgroup.ts';
import { containersIn } from '../../../src/workload/attestors/container-path.ts';
import { unitIn } from '../../../src/workload/attestors/systemd.ts';

const ID = '6469646e742065787065637420616e796f6e6520746f20726561642074686973';
const INNER = '0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef';
const UID = '72f9f152-440c-66ac-9084-e0fc1d8a910c';
const SLICE_UID = UID.replaceAll('-', '_');
const STATIC = 'd0a1b2c3d4e5f60718293a4b5c6d7e8f';

describe('a cgroup path that a container runtime makes', () => {
  it.each([
    ['Docker, cgroupfs', `/docker/${ID}`, 'docker'],
    ['Docker, cgroupfs, a cgroup inside', `/docker/${ID}/init`, 'docker'],
    ['Docker, systemd', `/system.slice/docker-${ID}.scope`, 'docker'],
    ['containerd, cgroupfs', `/default/${ID}`, 'containerd'],
    ['containerd, systemd (nerdctl)', `/system.slice/nerdctl-${ID}.scope`, 'containerd'],
    ['a guaranteed pod, cgroupfs', `/kubepods/pod${UID}/${ID}`, undefined],
    ['a burstable pod, cgroupfs', `/kubepods/burstable/pod${UID}/${ID}`, undefined],
    ['a static pod, cgroupfs', `/kubepods/besteffort/pod${STATIC}/${ID}`, undefined],
    ['CRI-O, cgroupfs', `/kubepods/burstable/pod${UID}/crio-${ID}`, 'cri-o'],
    [
      'containerd in a pod, systemd',
      `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${SLICE_UID}.slice/cri-containerd-${ID}.scope`,
      'containerd',
    ],
    ['CRI-O in a guaranteed pod, systemd', `/kubepods.slice/kubepods-pod${SLICE_UID}.slice/crio-${ID}.scope`, 'cri-o'],
    [
      'Docker in a pod, systemd',
      `/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${SLICE_UID}.slice/docker-${ID}.scope`,
      'docker',
    ],
    [
      'containerd told of slices, cgroupfs',
      `/system.slice/containerd.service/kubepods-burstable-pod${SLICE_UID}.slice:cri-containerd:${ID}`,
      'containerd',
    ],
    [
      'kind, seen inside its node',
      `/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod${SLICE_UID}.slice/cri-containerd-${ID}.scope`,
      'containerd',
    ],
    ['kind, cgroupfs, seen inside its node', `/kubelet/kubepods/besteffort/pod${UID}/${ID}`, undefined],
  ])('names it: %s', (_name, path, runtime) => {
    expect(containersIn(path)).toMatchObject([{ id: ID, runtime }]);
  });

  it('names nested ones, the outermost first, each with its own directory', () => {
    const kind = `/docker/${ID}/kubelet/kubepods/burstable/pod${UID}/${INNER}`;
    expect(containersIn(kind)).toEqual([
      { id: ID, runtime: 'docker', path: `/docker/${ID}` },
      { id: INNER, runtime: undefined, path: kind },
    ]);
    const docker = `/system.slice/docker-${ID}.scope/docker/${INNER}`;
    expect(containersIn(docker).map(({ id }) => id)).toEqual([ID, INNER]);
  });
});

describe('a cgroup path that only looks like one', () => {
  it.each([
    ['a user’s own unit', `/user.slice/user-1000.slice/user@1000.service/app.slice/docker-${ID}.scope`],
    ['a user’s own slice', `/user.slice/user-1000.slice/user@1000.service/docker/${ID}`],
    ['below a unit that was delegated', `/system.slice/web.service/docker/${ID}`],
    ['below a directory of another name', `/x/docker/${ID}`],
    ['below one as long as such a path', `/${'x'.repeat(71)}/docker/${ID}`],
    ['a pod below a unit', `/system.slice/web.service/kubepods/pod${UID}/${ID}`],
    ['an id that is too short', `/docker/${ID.slice(1)}`],
    ['an id that is too long', `/docker/${ID}0`],
    ['an id in upper case', `/docker/${ID.toUpperCase()}`],
    ['an id with something behind it', `/docker/${ID}-x`],
    ['an id with something before it', `/docker/x-${ID}`],
    ['a name before the scope', `/system.slice/my-docker-${ID}.scope`],
    ['a scope of another type', `/system.slice/docker-${ID}.service`],
    ['what watches a CRI-O container', `/kubepods.slice/kubepods-pod${SLICE_UID}.slice/crio-conmon-${ID}.scope`],
    [
      'slices that do not agree',
      `/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod${SLICE_UID}.slice/cri-containerd-${ID}.scope`,
    ],
    ['a pod of no uid', `/kubepods/burstable/pod../${ID}`],
    ['a path that climbs', `/../docker/${ID}`],
    ['a path that begins elsewhere', `docker/${ID}`],
    ['a cgroup that is gone', `/docker/${ID} (deleted)`],
    ['a line break', `/x\n/docker/${ID}`],
  ])('names nothing: %s', (_name, path) => {
    expect(containersIn(path)).toEqual([]);
  });
});

describe('the unit of a cgroup path', () => {
  it.each([
    ['/system.slice/nginx.service', 'nginx.service'],
    ['/system.slice/system-getty.slice/getty@tty1.service', 'getty@tty1.service'],
    ['/system.slice/nginx.service/worker', 'nginx.service'],
    ['/init.scope', 'init.scope'],
    ['/system.slice/_cpu.service', 'cpu.service'],
    ['/user.slice/user-1000.slice/session-3.scope', 'session-3.scope'],
    // a user's manager names units as the user likes: they are his manager's unit
    ['/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service', 'user@1000.service'],
  ])('%s is %s', (path, unit) => {
    expect(unitIn(path)?.unit).toBe(unit);
  });

  it.each([
    '/',
    '/docker/x',
    '/system.slice',
    '/system.slice/x/nginx.service',
    '/../system.slice/nginx.service',
    '/a b.service',
  ])('%s is in none', (path) => {
    expect(unitIn(path)).toBeUndefined();
  });
});

describe('what the kernel writes of control groups', () => {
  it('is read whole or not at all', () => {
    expect(parseCgroups('5:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/\n')).toEqual([
      { controllers: 'cpu,cpuacct', path: '/a' },
      { controllers: 'name=systemd', path: '/b:c' },
      { controllers: '', path: '/' },
    ]);
    for (const text of ['0::/', '0::a\n', 'x::/\n', '0::/\n\n', '0::/a\n/docker\n', '0::/\n'.repeat(65)]) {
      expect(parseCgroups(text)).toBeUndefined();
    }
  });

  it('says where each hierarchy is mounted whole', () => {
    const lines = [
      '30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate',
      '31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct',
      '32 25 0:28 / /with\\040space rw - cgroup systemd rw,name=systemd',
      '33 25 0:29 /docker/x /part rw - cgroup cgroup rw,pids',
      '34 25 0:30 / /tmp rw - tmpfs tmpfs rw',
    ];
    const mounts = parseMounts(lines.join('\n'));
    expect(['', 'cpu', 'cpuacct', 'name=systemd', 'pids'].map((name) => mounts.get(name))).toEqual([
      '/sys/fs/cgroup/unified',
      '/sys/fs/cgroup/cpu,cpuacct',
      '/sys/fs/cgroup/cpu,cpuacct',
      '/with space',
      undefined,
    ]);
  });
});

describe('whatever a path is', () => {
  const part = fc.oneof(
    fc.constantFrom(
      'docker',
      'kubepods',
      'burstable',
      `pod${UID}`,
      ID,
      INNER,
      'system.slice',
      `docker-${ID}.scope`,
      '..',
      '',
    ),
    fc.string(),
  );

  it('it is read without an error, and what is found begins where the path does', () => {
    fc.assert(
      fc.property(fc.array(part, { maxLength: 12 }), (parts) => {
        const path = `/${parts.join('/')}`;
        for (const container of containersIn(path)) {
          expect(path.startsWith(container.path)).toBe(true);
          expect(container.path.endsWith(container.id) || container.path.endsWith(`${container.id}.scope`)).toBe(true);
          expect(container.path).not.toContain('..');
        }
        const unit = unitIn(path);
        if (unit !== undefined) expect(path.startsWith(unit.path)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });

  it('what the kernel writes of it is read without an error', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.array(part), (text, parts) => {
        parseCgroups(text);
        parseMounts(text);
        const path = `/${parts.join('/')}`;
        const read = parseCgroups(`0::${path}\n`);
        if (!path.includes('\n')) expect(read).toEqual([{ controllers: '', path }]);
      }),
    );
  });
});
