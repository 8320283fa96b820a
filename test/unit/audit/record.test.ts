import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MAX_LINE_LENGTH } from '../../../src/audit/layout.ts';
import { encodeRecord, formatTime } from '../../../src/audit/record.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';

const head = { seq: 7, timeNs: 1_763_702_740_123_456_789n, node: 'node-a' };
const encode = (event: AuditEvent) => encodeRecord(head, event).toString();

describe('an event as a line', () => {
  test('has one order of keys, whatever the order it was given in', () => {
    const line = encode({
      detail: { b: 2, a: true },
      policy: 'p.yaml:3 backend',
      destination: { port: 80, spiffeId: 'spiffe://example.org/b' },
      kind: 'auth.failed',
      reason: 'AUTH_NO_SVID',
    });
    expect(line).toBe(
      '{"v":1,"seq":7,"time":"2025-11-21T05:25:40.123456789Z","node":"node-a","kind":"auth.failed",' +
        '"reason":"AUTH_NO_SVID","destination":{"spiffeId":"spiffe://example.org/b","port":80},' +
        '"policy":"p.yaml:3 backend","detail":{"a":true,"b":2}}',
    );
  });

  test('keeps all nine digits of the second', () => {
    expect(formatTime(1_000_000_001n)).toBe('1970-01-01T00:00:01.000000001Z');
  });

  test.each([
    'key',
    'privateKey',
    'private_key',
    'joinToken',
    'token',
    'psk',
    'PresharedKey',
    'password',
    'clientSecret',
  ])('never shows what is called %s', (name) => {
    const line = encode({ kind: 'admin.action', detail: { [name]: 'hunter2' } });
    expect(line).not.toContain('hunter2');
    expect(JSON.parse(line).detail[name]).toBe('[redacted]');
  });

  test('shows public keys and ids', () => {
    const line = encode({ kind: 'tunnel.up', detail: { publicKey: 'abc', keyNumber: 1, tokenId: 't1' } });
    expect(JSON.parse(line).detail).toEqual({ publicKey: 'abc', keyNumber: 1, tokenId: 't1' });
  });

  test('never shows a PEM private key, wherever it was put', () => {
    const pem = '-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----';
    const line = encode({ kind: 'admin.action', actor: pem, detail: { note: `see ${pem}` } });
    expect(line).not.toContain('MIGH');
  });

  test('an event too long for a line keeps all but its details', () => {
    const detail = Object.fromEntries(Array.from({ length: 32 }, (_, i) => [`d${i}`, '\0'.repeat(1024)]));
    const line = encode({ kind: 'admin.action', actor: 'root', detail });
    expect(line.length).toBeLessThanOrEqual(MAX_LINE_LENGTH);
    expect(JSON.parse(line)).toMatchObject({ actor: 'root', detail: { tooLong: expect.any(Number) } });
  });

  test('any event is one line of JSON of bounded length that reads back', () => {
    const text = fc.string({ unit: 'binary', maxLength: 3000 });
    const value = fc.oneof(text, fc.double(), fc.boolean());
    fc.assert(
      fc.property(fc.dictionary(text, value, { maxKeys: 40 }), text, (detail, actor) => {
        const line = encodeRecord(head, { kind: 'admin.action', actor, detail });
        expect(line.includes(0x0a)).toBe(false);
        expect(line.length).toBeLessThanOrEqual(MAX_LINE_LENGTH);
        expect(JSON.parse(line.toString()).seq).toBe(7);
      }),
      { numRuns: 50 },
    );
  });
});
