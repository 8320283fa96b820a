import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { formatEndpoint, parseEndpoint } from '../../../src/encryption/device.ts';
import { decodeGet, encodeSet, errnoOf, UapiConnection } from '../../../src/encryption/uapi.ts';
import { parseAddress } from '../../../src/model/address.ts';

const ip = (text: string) => parseAddress(text)!;
const key = (n: number) => Buffer.alloc(32, n);

describe('the UAPI text', () => {
  test('sets in the order given', () => {
    const text = encodeSet({
      privateKey: key(0xaa),
      listenPort: 51871,
      fwmark: 0,
      peers: [
        { publicKey: key(1), remove: true },
        {
          publicKey: key(1),
          presharedKey: key(2),
          endpoint: { address: ip('fd00::1'), port: 9 },
          keepalive: 25,
          addresses: [ip('10.0.0.1'), ip('fd00::2')],
        },
      ],
    });
    expect(text.split('\n')).toEqual([
      'set=1',
      `private_key=${'aa'.repeat(32)}`,
      'listen_port=51871',
      'fwmark=0',
      `public_key=${'01'.repeat(32)}`,
      'remove=true',
      `public_key=${'01'.repeat(32)}`,
      `preshared_key=${'02'.repeat(32)}`,
      'endpoint=[fd00::1]:9',
      'persistent_keepalive_interval=25',
      'allowed_ip=10.0.0.1/32',
      'allowed_ip=fd00::2/128',
      '',
      '',
    ]);
  });

  test('reads a device, passing over secrets and what it does not know', () => {
    const answer = [
      `private_key=${'aa'.repeat(32)}`,
      'listen_port=51871',
      'something_new=1',
      `public_key=${'01'.repeat(32)}`,
      `preshared_key=${'02'.repeat(32)}`,
      'protocol_version=1',
      'endpoint=192.0.2.1:9',
      'last_handshake_time_sec=12',
      'last_handshake_time_nsec=5',
      'tx_bytes=3',
      'rx_bytes=18446744073709551615',
      'allowed_ip=10.0.0.1/32',
      'allowed_ip=fd00::2/128',
      `public_key=${'03'.repeat(32)}`,
      'errno=0',
      '',
      '',
    ].join('\n');
    const state = decodeGet(answer, () => key(9));
    expect(state).toEqual({
      publicKey: key(9),
      listenPort: 51871,
      peers: [
        {
          publicKey: key(1),
          endpoint: '192.0.2.1:9',
          addresses: ['10.0.0.1', 'fd00::2'],
          lastHandshake: 12,
          rxBytes: 18446744073709551615n,
          txBytes: 3n,
        },
        { publicKey: key(3), endpoint: '', addresses: [], lastHandshake: 0, rxBytes: 0n, txBytes: 0n },
      ],
    });
    expect(JSON.stringify(state, (_, v) => (typeof v === 'bigint' ? 0 : v))).not.toContain('aaaa');
  });

  test('ends in an errno', () => {
    expect(errnoOf('a=1\nerrno=0\n\n')).toBe(0);
    expect(errnoOf('errno=-22\n\n')).toBe(-22);
    expect(errnoOf('errno=0\n')).toBeUndefined();
    expect(errnoOf('')).toBeUndefined();
  });

  test('any answer is read or refused with a RangeError or SyntaxError', () => {
    const line = fc.tuple(
      fc.constantFrom('public_key', 'private_key', 'allowed_ip', 'rx_bytes', 'endpoint', 'x'),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.array(line.map(([k, v]) => `${k}=${v}`)), (lines) => {
        try {
          decodeGet(lines.join('\n'), () => key(1));
        } catch (error) {
          expect(['RangeError', 'SyntaxError']).toContain((error as Error).name);
        }
      }),
    );
  });
});

describe('endpoints', () => {
  test.each(['192.0.2.1:1', '[fd00::1]:65535'])('%s round-trips', (text) => {
    expect(formatEndpoint(parseEndpoint(text)!)).toBe(text);
  });
  test.each([
    '',
    'x',
    '192.0.2.1',
    '192.0.2.1:0',
    '192.0.2.1:65536',
    '[192.0.2.1]:1',
    'fd00::1:1',
    '1.2.3:1',
    'a.example:1',
    '192.0.2.1:1\nremove=true',
  ])('%j is refused', (text) => {
    expect(parseEndpoint(text)).toBeUndefined();
  });
});

describe('the UAPI connection', () => {
  async function serving(answer: (request: string, socket: Socket) => void): Promise<UapiConnection> {
    const dir = mkdtempSync(join(tmpdir(), 'cs-t-uapi-'));
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.on('data', (data) => answer(data.toString(), socket));
    });
    await new Promise<void>((resolve) => server.listen(join(dir, 's'), resolve));
    const connection = await UapiConnection.open(join(dir, 's'));
    onTestFinished(() => {
      connection.close();
      server.close();
      rmSync(dir, { recursive: true, force: true });
    });
    return connection;
  }

  test('answers come in the order of their requests, however they are cut', async () => {
    const connection = await serving((request, socket) => {
      const text = `echo=${request.trim()}\nerrno=0\n\n`;
      for (const c of text) socket.write(c);
    });
    const answers = await Promise.all(['a', 'b', 'c'].map((r) => connection.request(`${r}\n\n`)));
    expect(answers.map((a) => a[5])).toEqual(['a', 'b', 'c']);
  });

  test('an errno other than 0 is an error that tells no secret', async () => {
    const connection = await serving((_, socket) => socket.write('errno=-22\n\n'));
    const failed = connection.request(encodeSet({ privateKey: key(0xaa) }));
    await expect(failed).rejects.toThrow('errno -22');
    await expect(failed).rejects.not.toThrow(/aaaa/);
  });

  test('a process that goes away fails what waits and what comes after', async () => {
    const connection = await serving((_, socket) => socket.destroy());
    await expect(connection.request('get=1\n\n')).rejects.toThrow(/ended/);
    await connection.ended;
    await expect(connection.request('get=1\n\n')).rejects.toThrow(/not running/);
  });
});
