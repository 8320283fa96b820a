/** SCTP: an association is opened by INIT alone, goes through the states of Linux's connection tracking, and strays end outside. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FLOW_STATES } from '../../src/datapath/layout.ts';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import { ethernet, ipPacket, PROTO, SCTP, type SctpOptions, sctp, tooBig } from './support/packets.ts';
import { A, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const SECOND = 1_000_000_000n;
type State = keyof typeof FLOW_STATES;
type Chunk = keyof typeof SCTP;
/** c: the side that began the association; s: the other. */
type Step = `${'c' | 's'} ${Chunk}`;

const setup: readonly Step[] = ['c init', 's initAck', 'c cookieEcho', 's cookieAck'];
const REACH: Partial<Record<State, readonly Step[]>> = {
  SCTP_COOKIE_WAIT: ['c init'],
  SCTP_COOKIE_ECHOED: ['c init', 's initAck', 'c cookieEcho'],
  SCTP_ESTABLISHED: setup,
  SCTP_SHUTDOWN_SENT: [...setup, 'c shutdown'],
  SCTP_SHUTDOWN_RECD: [...setup, 's shutdown'],
  SCTP_SHUTDOWN_ACK_SENT: [...setup, 'c shutdown', 's shutdownAck'],
  SCTP_CLOSED: [...setup, 'c shutdown', 's shutdownAck', 'c shutdownComplete'],
  SCTP_HEARTBEAT_SENT: ['c heartbeat'],
};
const LIFE: Partial<Record<State, bigint>> = {
  SCTP_COOKIE_WAIT: 3n,
  SCTP_COOKIE_ECHOED: 3n,
  SCTP_ESTABLISHED: 210n,
  SCTP_SHUTDOWN_SENT: 3n,
  SCTP_SHUTDOWN_RECD: 3n,
  SCTP_SHUTDOWN_ACK_SENT: 3n,
  SCTP_CLOSED: 10n,
  SCTP_HEARTBEAT_SENT: 30n,
};

describe.skipIf(unavailable)('SCTP', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.policy({ local: A.identity, remote: R.identity, proto: PROTO.sctp, dport: 5001, direction: EGRESS });
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const into = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
  const drop = (reason: string) => ({ action: 'drop', reasons: [reason] });
  const state = () => kernel.flows().map((flow) => flow.state);

  describe.each(families)('$name', (f) => {
    const send = (chunk: number, o: SctpOptions = {}) => out(sctp(f.a, f.r, 40000, 5001, chunk, o));
    const answer = (chunk: number, o: SctpOptions = {}) => into(sctp(f.r, f.a, 5001, 40000, chunk, o));
    const step = (one: Step) => {
      const [side, chunk] = one.split(' ') as ['c' | 's', Chunk];
      return (side === 'c' ? send : answer)(SCTP[chunk]);
    };
    const walk = (steps: readonly Step[]) => {
      for (const one of steps) expect(step(one), one).toMatchObject({ action: 'pass', reasons: [] });
    };

    test('an allowed association opens with the stamp of its endpoint; another port does not', () => {
      expect(send(SCTP.init)).toEqual({ action: 'pass', mark: stamped(A.endpoint), reasons: [] });
      expect(out(sctp(f.a, f.r, 40000, 5002, SCTP.init))).toMatchObject(drop('POLICY_DENIED'));
      expect(into(sctp(f.r, f.a, 40000, 5001, SCTP.init))).toMatchObject(drop('POLICY_DENIED'));
    });

    test.each(Object.entries(REACH))('%s is reached', (name, steps) => {
      walk(steps);
      expect(state()).toEqual([FLOW_STATES[name as State]]);
    });

    test.each(Object.entries(REACH))('%s ends after its time, and not before', (name, steps) => {
      const life = LIFE[name as State]!;
      walk(steps);
      kernel.ageFlows(life * SECOND - SECOND / 2n);
      expect(step('s abort').action).toBe('pass');
      kernel.clear('cs_flows');
      walk(steps);
      kernel.ageFlows((life + 2n) * SECOND);
      expect(step('s abort')).toMatchObject(drop('STRAY'));
    });

    test.each<readonly [string, readonly Step[], State]>([
      ['data both ways', [...setup, 'c data', 's sack', 's data', 'c sack', 's iData'], 'SCTP_ESTABLISHED'],
      ['INIT sent again', ['c init', 'c init', 's initAck', 's initAck'], 'SCTP_COOKIE_WAIT'],
      [
        'a cookie whose answer was lost',
        [...REACH.SCTP_COOKIE_ECHOED!, 'c cookieEcho', 's cookieAck'],
        'SCTP_ESTABLISHED',
      ],
      ['a stale cookie', [...REACH.SCTP_COOKIE_ECHOED!, 's error'], 'SCTP_COOKIE_ECHOED'],
      ['refused', ['c init', 's abort'], 'SCTP_CLOSED'],
      ['broken off', [...setup, 'c abort'], 'SCTP_CLOSED'],
      [
        'both shut down',
        [...setup, 'c shutdown', 's shutdown', 's shutdownAck', 'c shutdownAck'],
        'SCTP_SHUTDOWN_ACK_SENT',
      ],
      [
        'what was sent before the end',
        [...setup, 's shutdown', 'c data', 's sack', 'c shutdownAck'],
        'SCTP_SHUTDOWN_ACK_SENT',
      ],
      ['opened again', [...REACH.SCTP_CLOSED!, ...setup], 'SCTP_ESTABLISHED'],
      ['restarted', [...setup, 'c init', 's initAck', 'c cookieEcho', 's cookieAck'], 'SCTP_ESTABLISHED'],
      ['heartbeats', [...setup, 'c heartbeat', 's heartbeatAck', 's heartbeat', 'c heartbeatAck'], 'SCTP_ESTABLISHED'],
      ['another path', ['c heartbeat', 's heartbeatAck', 'c data'], 'SCTP_ESTABLISHED'],
      ['picked up in the middle', ['c data', 's sack'], 'SCTP_ESTABLISHED'],
      ['picked up by a selective acknowledgement', ['c sack', 's data'], 'SCTP_ESTABLISHED'],
      ['picked up at its cookie', ['c cookieEcho', 's cookieAck'], 'SCTP_ESTABLISHED'],
    ])('%s', (_, steps, end) => {
      walk(steps);
      expect(state()).toEqual([FLOW_STATES[end]]);
    });

    test.each([
      'initAck',
      'cookieAck',
      'abort',
      'error',
      'shutdown',
      'shutdownAck',
      'shutdownComplete',
      'heartbeatAck',
    ] as const)('%s of no association is a stray, whatever policy allows', (chunk) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.policy({ local: A.identity, direction: INGRESS });
      expect(send(SCTP[chunk])).toMatchObject(drop('STRAY'));
      expect(answer(SCTP[chunk])).toMatchObject(drop('STRAY'));
    });

    test.each<readonly [string, readonly Step[], Step]>([
      ['data before the cookie', ['c init', 's initAck'], 'c data'],
      ['the server’s data before the cookie', ['c init', 's initAck'], 's data'],
      ['a cookie answered before it was sent', ['c init'], 's cookieAck'],
      ['a shutdown of what is not open', ['c init'], 's shutdown'],
      ['an end without an acknowledgement', [...setup, 'c shutdown'], 's shutdownComplete'],
      ['data after the end', REACH.SCTP_CLOSED!, 's data'],
    ])('%s is a stray', (_, before, last) => {
      walk(before);
      const was = state();
      expect(step(last)).toMatchObject(drop('STRAY'));
      expect(state()).toEqual(was);
    });

    test('an INIT against the association is its sender’s own', () => {
      walk(setup);
      expect(step('s init')).toMatchObject(drop('POLICY_DENIED'));
      walk(['c data', 's data']);
    });

    test('both sides may open at once, where both may open', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      walk([
        'c init',
        's init',
        'c initAck',
        's initAck',
        'c cookieEcho',
        's cookieEcho',
        's cookieAck',
        'c cookieAck',
      ]);
      expect(state()).toEqual([FLOW_STATES.SCTP_ESTABLISHED]);
    });

    test('what no association sends is dropped, also in a running one', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      walk(setup);
      const data = Buffer.from([SCTP.data, 0, 0, 4]);
      for (const options of [{ length: 3 }, { length: 0 }, { length: 33 }, { tag: 0 }]) {
        expect(send(SCTP.data, options), JSON.stringify(options)).toMatchObject(drop('SCTP_CHUNK'));
      }
      expect(send(SCTP.abort, { tag: 0 })).toMatchObject(drop('SCTP_CHUNK'));
      expect(send(SCTP.init, { tag: 5 })).toMatchObject(drop('SCTP_CHUNK'));
      for (const alone of [SCTP.init, SCTP.initAck, SCTP.shutdownComplete]) {
        expect(send(alone, { more: data }), `${alone}`).toMatchObject(drop('SCTP_CHUNK'));
      }
      for (const together of [SCTP.data, SCTP.sack, SCTP.cookieEcho, SCTP.shutdown]) {
        expect(send(together, { more: data }).action, `${together}`).toBe('pass');
      }
    });

    test('cut at every byte of its headers it is dropped, whatever policy allows', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const whole = sctp(f.a, f.r, 40000, 5001, SCTP.init);
      const headers = f.name === 'IPv4' ? 20 : 40;
      for (let length = 0; length < 16; length++) {
        const cut = ipPacket(f.a, f.r, PROTO.sctp, whole.subarray(headers, headers + length));
        expect(out(Buffer.concat([cut, Buffer.alloc(60)])), `${length}`).toMatchObject(drop('INVALID_PACKET'));
      }
      for (let length = 16; length < 44; length++) {
        const cut = ipPacket(f.a, f.r, PROTO.sctp, whole.subarray(headers, headers + length));
        expect(out(Buffer.concat([cut, Buffer.alloc(60)])), `${length}`).toMatchObject(drop('SCTP_CHUNK'));
      }
    });

    test('an ICMP error about an association passes with it', () => {
      const sent = sctp(f.a, f.r, 40000, 5001, SCTP.data);
      expect(into(tooBig(f.r, f.a, sent))).toMatchObject(drop('ICMP_TYPE'));
      walk(setup);
      expect(into(tooBig(f.r, f.a, sent)).action).toBe('pass');
      expect(into(tooBig(f.r, f.a, sctp(f.a, f.r, 40001, 5001, SCTP.data)))).toMatchObject(drop('ICMP_TYPE'));
    });
  });
});
