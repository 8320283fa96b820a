/** The small parts a channel is made of, each by itself. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { Admission } from '../../../src/channel/admission.ts';
import { parseDialAddress } from '../../../src/channel/dial-address.ts';
import { encodeFrame, FrameReader, MAX_FRAME_OCTETS } from '../../../src/channel/frame.ts';
import { RefusalLog } from '../../../src/channel/refusals.ts';
import { type SecondChannel, settle } from '../../../src/channel/settle.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';

function manualClock() {
  let now = 0n;
  return {
    bootNs: () => now,
    advanceMs: (ms: number) => {
      now += BigInt(ms) * 1_000_000n;
    },
  };
}

describe('frames', () => {
  const types = Object.values(FrameType).filter((type) => type > 0);
  const frame = fc.record({ type: fc.constantFrom(...types), body: fc.uint8Array({ maxLength: 300 }) });

  it('come out as they went in, however the stream is cut', () => {
    fc.assert(
      fc.property(fc.array(frame), fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }), (frames, cuts) => {
        const stream = Buffer.concat(frames.map(({ type, body }) => encodeFrame(type, body)!));
        const reader = new FrameReader();
        const got: { type: number; body: Uint8Array }[] = [];
        for (let at = 0, i = 0; at < stream.length; at += cuts[i++ % cuts.length]!) {
          reader.feed(stream.subarray(at, at + cuts[i % cuts.length]!));
          for (let next = reader.next(); next?.ok; next = reader.next()) got.push(next.value);
        }
        expect(got.map(({ type, body }) => ({ type, body: Uint8Array.from(body) }))).toEqual(frames);
      }),
    );
  });

  it('never make the reader throw, whatever comes', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 40 })), (chunks) => {
        const reader = new FrameReader();
        for (const chunk of chunks) {
          reader.feed(Buffer.from(chunk));
          for (let next = reader.next(); next !== undefined; next = reader.next()) if (!next.ok) return;
        }
      }),
    );
  });

  it('hold 64 KiB and no octet more', () => {
    expect(encodeFrame(FrameType.FRAME_TYPE_MISS, Buffer.alloc(MAX_FRAME_OCTETS - 1))?.length).toBe(
      MAX_FRAME_OCTETS + 4,
    );
    expect(encodeFrame(FrameType.FRAME_TYPE_MISS, Buffer.alloc(MAX_FRAME_OCTETS))).toBeUndefined();
    const reader = new FrameReader();
    reader.feed(Buffer.from('00010001', 'hex'));
    expect(reader.next()).toEqual({ ok: false, error: 'PEER_FRAME_TOO_LARGE' });
  });
});

describe('a second channel of the same pair', () => {
  const base: SecondChannel = {
    existingFromLower: true,
    incomingFromLower: false,
    existingAgeMs: 10,
    existingIncarnation: 1n,
    incomingIncarnation: 1n,
    succeeds: false,
  };

  it('of two simultaneous dials the one of the lower name stays, whichever came first', () => {
    expect(settle(base, 1000)).toEqual({ kind: 'probe', refusal: 'PEER_REPLACED' });
    expect(settle({ ...base, existingFromLower: false, incomingFromLower: true }, 1000)).toEqual({ kind: 'replace' });
  });

  it('later, or from the same side, it is a second process until the first stops answering', () => {
    const refused = { kind: 'probe', refusal: 'PEER_NODE_IN_USE' };
    expect(settle({ ...base, existingFromLower: false, incomingFromLower: true, existingAgeMs: 1000 }, 1000)).toEqual(
      refused,
    );
    expect(settle({ ...base, incomingFromLower: true }, 1000)).toEqual(refused);
  });

  it('takes the place at once as a proven successor or a higher incarnation, and not as a lower one', () => {
    expect(settle({ ...base, succeeds: true }, 1000)).toEqual({ kind: 'replace' });
    expect(settle({ ...base, incomingIncarnation: 2n }, 1000)).toEqual({ kind: 'replace' });
    expect(settle({ ...base, existingIncarnation: 2n }, 1000).kind).toBe('probe');
  });
});

describe('admission', () => {
  const limits = {
    ...{ halfOpen: 4, halfOpenPerSource: 2, acceptsPerSecond: 1, acceptBurst: 3, sources: 8 },
    ...{ handshakesPerSecond: 100, handshakeBurst: 100 },
  };

  it('holds the half-open places of one source, of all sources, and keeps as many again for listed nodes', () => {
    const admission = new Admission(limits, manualClock(), (address) => address.startsWith('10.'));
    const first = admission.admit('192.0.2.1');
    expect(first).toBeDefined();
    expect(admission.admit('192.0.2.1')).toBeDefined();
    expect(admission.admit('192.0.2.1')).toBeUndefined();
    expect(admission.admit('192.0.2.2')).toBeDefined();
    expect(admission.admit('192.0.2.3')).toBeDefined();
    expect(admission.admit('192.0.2.4')).toBeUndefined();
    for (let node = 1; node <= 4; node++) expect(admission.admit(`10.0.0.${node}`)).toBeDefined();
    expect(admission.admit('10.0.0.5')).toBeUndefined();
    first!.release();
    first!.release();
    expect(admission.admit('10.0.0.5')).toBeDefined();
    expect(admission.admit('10.0.0.6')).toBeUndefined();
  });

  it('limits how often one source may begin, an IPv6 /64 being one', () => {
    const clock = manualClock();
    const admission = new Admission(limits, clock, () => false);
    const tries = ['2001:db8::1', '2001:db8::2', '2001:db8::ffff:1', '2001:db8::3'];
    const admitted = tries.map((address) => {
      const place = admission.admit(address);
      place?.release();
      return place !== undefined;
    });
    expect(admitted).toEqual([true, true, true, false]);
    expect(admission.admit('2001:db8::4')).toBeUndefined();
    expect(admission.admit('2001:db8:0:1::1')).toBeDefined();
    clock.advanceMs(1_000);
    expect(admission.admit('2001:db8::5')).toBeDefined();
  });

  it('begins so many handshakes a second for all sources together, and as many again for listed nodes', () => {
    const clock = manualClock();
    const wide = { ...limits, halfOpen: 10_000, sources: 10_000, handshakesPerSecond: 10, handshakeBurst: 20 };
    const admission = new Admission(wide, clock, (address) => address.startsWith('10.'));
    const admitted = (net: string) =>
      Array.from({ length: 250 }, (_, i) => admission.admit(`${net}.${i}`)).filter((place) => place !== undefined)
        .length;
    expect(admitted('192.0.2')).toBe(20);
    expect(admitted('10.0.0')).toBe(20);
    expect(admitted('10.0.1')).toBe(0);
    clock.advanceMs(1_000);
    expect(admitted('198.51.100')).toBe(10);
    expect(admitted('10.0.2')).toBe(10);
    expect(admitted('203.0.113')).toBe(0);
  });

  it('remembers a bounded number of sources and forgets the idle ones first', () => {
    const clock = manualClock();
    const admission = new Admission({ ...limits, halfOpen: 1000 }, clock, () => false);
    for (let i = 0; i < 8; i++) admission.admit(`192.0.2.${i}`)?.release();
    expect(admission.admit('198.51.100.1')).toBeUndefined();
    clock.advanceMs(10_000);
    expect(admission.admit('198.51.100.1')).toBeDefined();
  });
});

describe('refusals', () => {
  it('are told once per reason and source and second, with the number left out', () => {
    const clock = manualClock();
    const events: AuditEvent[] = [];
    const log = new RefusalLog({ emit: (event) => events.push(event) }, clock);
    for (let i = 0; i < 100; i++) log.refused('PEER_HANDSHAKE_FAILED', '192.0.2.1', {});
    log.refused('PEER_HANDSHAKE_FAILED', '192.0.2.2', {});
    expect(events).toHaveLength(2);
    clock.advanceMs(1_000);
    log.refused('PEER_HANDSHAKE_FAILED', '192.0.2.1', {});
    expect(events[2]).toEqual({ kind: 'peer.refused', reason: 'PEER_HANDSHAKE_FAILED', detail: { suppressed: 99 } });
  });
});

describe('addresses to dial', () => {
  it('are IP:port or [IPv6]:port', () => {
    expect(parseDialAddress('192.0.2.1:4250')).toEqual({ host: '192.0.2.1', port: 4250 });
    expect(parseDialAddress('[2001:DB8::1]:4250')).toEqual({ host: '2001:db8::1', port: 4250 });
    for (const bad of [
      '192.0.2.1',
      'host:1',
      '[192.0.2.1]:1',
      '2001:db8::1:4250',
      '192.0.2.1:0',
      '192.0.2.1:65536',
      '',
    ]) {
      expect(parseDialAddress(bad), bad).toBeUndefined();
    }
  });
});
