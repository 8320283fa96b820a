/** What the addon delivers on the event loop: ring buffer records, TUN packets, netlink messages; and how it is closed. */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { type LoadedObject, native } from '../../../native/index.ts';
import { compileFixture, privileged, thrownBy } from './fixture.ts';

const addon = native();

function closeAll(object: LoadedObject) {
  for (const map of Object.values(object.maps)) addon.closeFd(map.fd);
  for (const program of Object.values(object.programs)) addon.closeFd(program);
}

/** RTM_GETLINK dump, netlink(7). */
function linkDump(): Buffer {
  const request = Buffer.alloc(32);
  request.writeUInt32LE(32, 0);
  request.writeUInt16LE(18, 4);
  request.writeUInt16LE(0x301, 6);
  request.writeUInt32LE(7, 8);
  return request;
}

describe.skipIf(!privileged)('ring buffer', () => {
  test('each record arrives once and in order, also more than fit into one turn of the loop', async () => {
    const object = addon.loadObject({ path: compileFixture() });
    const numbers: bigint[] = [];
    const ring = addon.ringbufOpen(object.maps.t_ring!.fd, (record) => {
      expect(record.readUInt32LE(8)).toBe(64);
      numbers.push(record.readBigUInt64LE(0));
    });
    const total = 2000;
    for (let i = 0; i < total; i++) addon.progTestRun(object.programs.emit!, { packet: Buffer.alloc(64) });
    await vi.waitFor(() => expect(numbers).toHaveLength(total), { interval: 1 });
    const perCpu = numbers.filter((n, i) => i > 0 && n <= numbers[i - 1]!).length;
    expect(perCpu).toBeLessThan(total / 2); // per-CPU counters: order breaks only where the CPU changed
    ring.close();
    closeAll(object);
  });

  test('closing within the callback delivers nothing more, and closing twice is harmless', async () => {
    const object = addon.loadObject({ path: compileFixture() });
    let records = 0;
    const ring = addon.ringbufOpen(object.maps.t_ring!.fd, () => {
      records++;
      ring.close();
      ring.close();
    });
    for (let i = 0; i < 10; i++) addon.progTestRun(object.programs.emit!, { packet: Buffer.alloc(64) });
    await vi.waitFor(() => expect(records).toBe(1), { interval: 1 });
    await new Promise((resolve) => setImmediate(resolve));
    expect(records).toBe(1);
    closeAll(object);
  });
});

describe.skipIf(!privileged)('TUN', () => {
  test('a packet sent into the device is delivered, one written to it arrives, and its name is free after close', async () => {
    const script = join(tmpdir(), `cs-t-tun-${process.pid}.ts`);
    // A child, so that the device and its addresses live in a namespace of their own.
    writeFileSync(
      script,
      `
      import { execSync } from 'node:child_process';
      import { createSocket } from 'node:dgram';
      import { native } from '${join(import.meta.dirname, '../../../native/index.ts')}';
      const addon = native();
      const tun = addon.tunOpen('cs-t-tun0', (packet) => {
        if (packet[0] >> 4 !== 4) return;
        // Send it back with source and destination exchanged: IP and UDP checksums stay right.
        const reply = Buffer.from(packet);
        packet.copy(reply, 12, 16, 20); packet.copy(reply, 16, 12, 16);
        packet.copy(reply, 20, 22, 24); packet.copy(reply, 22, 20, 22);
        tun.write(reply);
      });
      execSync('ip link set dev cs-t-tun0 up && ip addr add 192.0.2.1/24 dev cs-t-tun0');
      const socket = createSocket('udp4');
      socket.on('message', (message) => {
        console.log(String(message));
        socket.close(); tun.close(); tun.close();
        addon.tunOpen('cs-t-tun0', () => {}).close();
        try { tun.write(Buffer.alloc(20)); } catch (error) { console.log(error.code); }
      });
      socket.bind(4444, '192.0.2.1', () => socket.send('there and back', 4444, '192.0.2.9'));
      `,
    );
    const child = spawnSync('unshare', ['--net', process.execPath, script], { encoding: 'utf8', timeout: 10_000 });
    expect(child.stderr).toBe('');
    expect(child.stdout).toBe('there and back\nEBADF\n');
    expect(child.status).toBe(0);
  });

  test('a name too long or with a pattern is refused', () => {
    expect(thrownBy(() => addon.tunOpen('a-name-too-long-', () => {}))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.tunOpen('cs%d', () => {}))).toBeInstanceOf(TypeError);
  });
});

describe('netlink', () => {
  test('a dump is returned whole, message by message', () => {
    const answer = addon.netlinkRequest(0, linkDump());
    const types: number[] = [];
    for (let at = 0; at < answer.length; at += (answer.readUInt32LE(at) + 3) & ~3)
      types.push(answer.readUInt16LE(at + 4));
    expect(types.at(-1)).toBe(3); // NLMSG_DONE
    expect(types.slice(0, -1).every((type) => type === 16)).toBe(true); // RTM_NEWLINK
  });

  test('the kernel’s refusal is thrown with its errno', () => {
    const request = linkDump();
    request.writeUInt16LE(0x5, 6); // not a dump: one link, which is not named
    expect(thrownBy(() => addon.netlinkRequest(0, request))).toMatchObject({ code: 'EINVAL', syscall: 'netlink' });
  });

  test('a message whose length field lies is not sent', () => {
    const request = linkDump();
    request.writeUInt32LE(31, 0);
    expect(thrownBy(() => addon.netlinkRequest(0, request))).toBeInstanceOf(TypeError);
  });
});

describe('processes and namespaces', () => {
  test('the caller behind a unix socket is known, and nobody is behind a TCP socket', async () => {
    const path = join(tmpdir(), `cs-t-${process.pid}.sock`);
    const server = createServer((socket) => {
      const fd = (socket as unknown as { _handle: { fd: number } })._handle.fd;
      expect(addon.peerCredentials(fd)).toEqual({ pid: process.pid, uid: process.getuid!(), gid: process.getgid!() });
      socket.end('seen');
    }).listen(path);
    const seen = await new Promise((resolve, reject) => {
      connect(path).on('data', resolve).on('error', reject);
    });
    expect(String(seen)).toBe('seen');
    server.close();
    const tcp = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => tcp.once('listening', resolve));
    const fd = (tcp as unknown as { _handle: { fd: number } })._handle.fd;
    expect(() => addon.peerCredentials(fd)).toThrow();
    tcp.close();
  });

  test('a pidfd tells when its process has ended', () => {
    const own = addon.pidfdOpen(process.pid);
    expect(addon.pidfdAlive(own)).toBe(true);
    addon.closeFd(own);
    expect(thrownBy(() => addon.pidfdAlive(own)).code).toBe('EBADF');
    const gone = spawnSync('true').pid;
    expect(thrownBy(() => addon.pidfdOpen(gone)).code).toBe('ESRCH');
  });

  test('boot time is the kernel’s, in nanoseconds', () => {
    const uptime = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]);
    expect(Math.abs(Number(addon.bootTimeNs() / 1_000_000n) - uptime * 1000)).toBeLessThan(1000);
  });

  test.skipIf(!privileged)('a visit to another network namespace always ends at home', () => {
    const home = readFileSync('/proc/thread-self/net/dev', 'utf8');
    const path = join(tmpdir(), `cs-t-netns-${process.pid}`);
    writeFileSync(path, '');
    spawnSync('unshare', [`--net=${path}`, 'true']);
    const abroad = addon.withNetns(path, () => readFileSync('/proc/thread-self/net/dev', 'utf8'));
    expect(abroad).toContain('lo:');
    expect(abroad).not.toBe(home);
    expect(() =>
      addon.withNetns(path, () => {
        throw new RangeError('inside');
      }),
    ).toThrow(RangeError);
    expect(thrownBy(() => addon.withNetns(path, async () => {}))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.withNetns('/nowhere', () => {})).code).toBe('ENOENT');
    expect(readFileSync('/proc/thread-self/net/dev', 'utf8').split('\n').length).toBe(home.split('\n').length);
    spawnSync('umount', [path]);
  });
});
