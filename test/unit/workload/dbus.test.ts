import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, it } from 'vitest';
import { type Bus, connectBus } from '../../../src/workload/attestors/dbus.ts';

const DAEMON = ['/usr/bin/dbus-daemon', '/bin/dbus-daemon'].find((path) => existsSync(path));
const DRIVER = 'org.freedesktop.DBus';
const ask = (bus: Bus, member: string, ...strings: string[]) =>
  bus.call({ destination: DRIVER, path: '/org/freedesktop/DBus', interface: DRIVER, member, strings });

if (DAEMON !== undefined) {
  describe('a question on a real bus (dbus-daemon)', () => {
    it('is answered, or refused by name', async () => {
      const directory = mkdtempSync(join(tmpdir(), 'cs-dbus-'));
      const socketPath = join(directory, 'bus');
      const child = spawn(DAEMON, ['--session', '--nofork', '--print-address', `--address=unix:path=${socketPath}`], {
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      try {
        for await (const _address of createInterface({ input: child.stdout })) break;
        const bus = await connectBus(socketPath, AbortSignal.timeout(5_000));
        expect(await ask(bus, 'GetNameOwner', DRIVER)).toBe(DRIVER);
        expect(await ask(bus, 'GetId')).toMatch(/^[0-9a-f]{32}$/);
        await expect(ask(bus, 'GetNameOwner', 'org.example.Nobody')).rejects.toThrow(
          'org.freedesktop.DBus.Error.NameHasNoOwner',
        );
        const property = { destination: DRIVER, path: '/org/freedesktop/DBus', interface: `${DRIVER}.Properties` };
        // a variant, of a type that is none of those asked for here
        await expect(bus.call({ ...property, member: 'Get', strings: [DRIVER, 'Features'] })).rejects.toThrow(
          /where none is expected/,
        );
        bus.close();
      } finally {
        child.kill('SIGKILL');
        rmSync(directory, { recursive: true, force: true });
      }
    });
  });
}

describe('what is no bus', () => {
  const OK = 'OK 0123456789abcdef0123456789abcdef\r\n';
  it.each([
    ['refuses', /does not accept/, Buffer.from('REJECTED EXTERNAL\r\n')],
    ['says nothing and closes', /closed the connection/, Buffer.alloc(0)],
    ['never ends a line', /sends too much/, Buffer.alloc(200 * 1024, 'x')],
    [
      'announces a message beyond all bounds',
      /too large/,
      Buffer.concat([Buffer.from(OK), header(0xffffffff, 0xffffffff)]),
    ],
    [
      'ends a message early',
      /ends too early/,
      Buffer.concat([Buffer.from(OK), header(0, 4), Buffer.from([8, 1, 0x73, 0, 0, 0, 0, 0])]),
    ],
    [
      'writes big-endian',
      /not a little-endian/,
      Buffer.concat([Buffer.from(OK), Buffer.from('B'), header(0, 0).subarray(1)]),
    ],
  ])('is given up when it %s', async (_name, problem, bytes) => {
    await withServer(
      (socket) => socket.end(bytes),
      (socketPath) => expect(connectBus(socketPath, AbortSignal.timeout(5_000))).rejects.toThrow(problem),
    );
  });

  it('is not waited for beyond the deadline', async () => {
    await withServer(
      () => {},
      (socketPath) => expect(connectBus(socketPath, AbortSignal.timeout(20))).rejects.toThrow('no answer in time'),
    );
  });
});

async function withServer(serve: (socket: Socket) => void, act: (socketPath: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'cs-dbus-'));
  const server = createServer((socket) => {
    socket.on('error', () => {}).resume();
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(join(directory, 'bus'), resolve));
  try {
    await act(join(directory, 'bus'));
  } finally {
    await new Promise((resolve) => server.close(resolve));
    rmSync(directory, { recursive: true });
  }
}

function header(bodyLength: number, fieldsLength: number): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.write('l', 0, 'latin1');
  bytes.writeUInt8(2, 1);
  bytes.writeUInt8(1, 3);
  bytes.writeUInt32LE(bodyLength, 4);
  bytes.writeUInt32LE(1, 8);
  bytes.writeUInt32LE(fieldsLength, 12);
  return bytes;
}
