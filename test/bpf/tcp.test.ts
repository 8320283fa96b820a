/** TCP: what no stack sends is dropped, a flow goes through the states of Linux's connection tracking, and strays end outside. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FLOW_STATES } from '../../src/datapath/layout.ts';
import { SLOW } from '../support/slow.ts';
import { type Kernel, MARK_TUNNEL, unavailable } from './support/kernel.ts';
import { ethernet, ipPacket, PROTO, TCP, tcp, tcpSegment } from './support/packets.ts';
import { A, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const SECOND = 1_000_000_000n;
const { syn, fin, rst, ack, psh, urg, ece, cwr } = TCP;

type State = keyof typeof FLOW_STATES;
/** c: the side that began the flow; s: the other. A name alone stands for its flag. */
type Step = `${'c' | 's'} ${'syn' | 'synack' | 'ack' | 'fin' | 'rst'}`;
const FLAGS = { syn, synack: syn | ack, ack, fin: fin | ack, rst } as const;

/** Idle seconds after which nf_conntrack forgets a connection in this state. */
const LIFE: Partial<Record<State, bigint>> = {
  SYN_SENT: 120n,
  SYN_RECV: 60n,
  ESTABLISHED: 432_000n,
  FIN_WAIT: 120n,
  CLOSE_WAIT: 60n,
  LAST_ACK: 30n,
  TIME_WAIT: 120n,
  CLOSE: 10n,
};

const handshake = ['c syn', 's synack', 'c ack'] as const;
/** Ways into each state. */
const REACH: Partial<Record<State, readonly Step[]>> = {
  SYN_SENT: ['c syn'],
  SYN_RECV: ['c syn', 's synack'],
  ESTABLISHED: handshake,
  FIN_WAIT: [...handshake, 'c fin'],
  CLOSE_WAIT: [...handshake, 'c fin', 's ack'],
  LAST_ACK: [...handshake, 'c fin', 's ack', 's fin'],
  TIME_WAIT: [...handshake, 'c fin', 's ack', 's fin', 'c ack'],
  CLOSE: [...handshake, 's rst'],
};

describe.skipIf(unavailable)('TCP', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const into = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
  const state = () => kernel.flows().map((flow) => flow.state);
  const stray = { action: 'drop', reasons: ['STRAY'] };

  describe.each(families)('$name', (f) => {
    const step = (one: Step) => {
      const [side, name] = one.split(' ') as ['c' | 's', keyof typeof FLAGS];
      return side === 'c' ? out(tcp(f.a, f.r, 40000, 80, FLAGS[name])) : into(tcp(f.r, f.a, 80, 40000, FLAGS[name]));
    };
    const walk = (steps: readonly Step[]) => {
      for (const one of steps) expect(step(one), one).toMatchObject({ action: 'pass', reasons: [] });
    };

    test('exactly the combinations of flags that a stack sends pass', () => {
      walk(handshake);
      const base = new Set([syn, syn | urg, syn | ack, rst, rst | ack, fin | ack, fin | ack | urg, ack, ack | urg]);
      for (let flags = 0; flags < 256; flags++) {
        const verdict = out(tcp(f.a, f.r, 41000, 80, flags));
        if (base.has(flags & ~(psh | ece | cwr))) expect(verdict.reasons, `${flags}`).not.toContain('TCP_FLAGS');
        else expect(verdict, `${flags}`).toMatchObject({ action: 'drop', reasons: ['TCP_FLAGS'] });
      }
    });

    test('a running flow is no cover for impossible flags', () => {
      walk(handshake);
      for (const flags of [0, fin, syn | fin, syn | rst, fin | rst, psh | urg | fin, 0xff]) {
        expect(out(tcp(f.a, f.r, 40000, 80, flags)).reasons).toEqual(['TCP_FLAGS']);
        expect(into(tcp(f.r, f.a, 80, 40000, flags)).reasons).toEqual(['TCP_FLAGS']);
      }
      expect(state()).toEqual([FLOW_STATES.ESTABLISHED]);
    });

    test.each(Object.entries(REACH))('%s is reached', (name, steps) => {
      walk(steps);
      expect(state()).toEqual([FLOW_STATES[name as State]]);
    });

    test.each(Object.entries(REACH))('%s ends after its time, and not before', (name, steps) => {
      const life = LIFE[name as State]!;
      // An answer of the server passes only while the flow is there; none of these changes a state here.
      const probe: Step = name === 'SYN_SENT' ? 's ack' : 's synack';
      walk(steps);
      kernel.ageFlows((life - 1n) * SECOND);
      expect(step(probe).action).toBe('pass');
      kernel.clear('cs_flows');
      walk(steps);
      kernel.ageFlows((life + 2n) * SECOND);
      expect(step(probe).action).toBe('drop');
    });

    test.each<readonly [string, readonly Step[], State]>([
      ['the server closes first', [...handshake, 's fin', 'c ack', 'c fin', 's ack'], 'TIME_WAIT'],
      ['both close at once', [...handshake, 'c fin', 's fin', 'c ack'], 'TIME_WAIT'],
      ['FIN and ACK in one', [...handshake, 'c fin', 's fin', 'c ack', 's ack'], 'TIME_WAIT'],
      ['half closed, data still come', [...handshake, 'c fin', 's ack', 's ack', 'c ack'], 'CLOSE_WAIT'],
      ['refused', ['c syn', 's rst'], 'CLOSE'],
      ['given up', ['c syn', 's synack', 'c rst'], 'CLOSE'],
      ['a SYN sent again', ['c syn', 'c syn', 's synack', 's synack', 'c ack'], 'ESTABLISHED'],
      ['a late SYN in a running flow', [...handshake, 'c syn', 's ack'], 'ESTABLISHED'],
      ['challenged after a restart', [...handshake, 'c syn', 's ack', 'c rst', 'c syn'], 'SYN_SENT'],
      ['opened again after TIME_WAIT', [...REACH.TIME_WAIT!, ...handshake], 'ESTABLISHED'],
      ['opened again after RST', [...handshake, 'c rst', ...handshake], 'ESTABLISHED'],
      ['picked up in the middle', ['c ack', 's ack'], 'ESTABLISHED'],
      ['picked up at its end', ['c fin', 's ack', 's fin', 'c ack'], 'TIME_WAIT'],
    ])('%s', (_, steps, end) => {
      walk(steps);
      expect(state()).toEqual([FLOW_STATES[end]]);
    });

    test.each<readonly [string, readonly Step[], Step]>([
      ['a SYN-ACK of no flow', [], 's synack'],
      ['a RST of no flow', [], 's rst'],
      ['the client’s SYN-ACK of no flow', [], 'c synack'],
      ['the client’s RST of no flow', [], 'c rst'],
      ['a SYN-ACK from the side that began', ['c syn'], 'c synack'],
      ['an ACK before the SYN was answered', ['c syn'], 'c ack'],
      ['a FIN before the SYN was answered', ['c syn'], 'c fin'],
      ['the server’s FIN before it answered', ['c syn'], 's fin'],
    ])('%s is a stray, whatever policy allows', (_, before, last) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.policy({ local: A.identity, direction: INGRESS });
      walk(before);
      expect(step(last)).toMatchObject(stray);
    });

    test('a stray leaves the flow as it is', () => {
      walk(['c syn']);
      step('c fin');
      expect(state()).toEqual([FLOW_STATES.SYN_SENT]);
    });

    test('what is picked up without a flow is judged as if it opened one', () => {
      expect(into(tcp(f.r, f.a, 80, 40000, ack)).reasons).toEqual(['POLICY_DENIED']);
      expect(out(tcp(f.a, f.r, 40000, 80, ack)).action).toBe('pass');
      kernel.clear('cs_flows');
      kernel.clear('cs_policy');
      expect(out(tcp(f.a, f.r, 40000, 80, ack)).reasons).toEqual(['POLICY_DENIED']);
    });

    test('a SYN against the flow is its sender’s own, in every state', () => {
      for (const steps of Object.values(REACH)) {
        kernel.clear('cs_flows');
        walk(steps);
        expect(step('s syn').reasons).toEqual(['POLICY_DENIED']);
        expect(out(tcp(f.a, f.r, 40000, 80, rst)).action).toBe('pass'); // and took nothing away
      }
    });

    test('a flow that is opened again is judged anew', () => {
      walk(REACH.CLOSE!);
      kernel.clear('cs_policy');
      // Without a new revision the flow's verdict still holds; a SYN does not take it over.
      expect(step('c syn').reasons).toEqual(['POLICY_DENIED']);
      expect(step('s ack').action).toBe('pass');
    });

    test('both sides may open at once, where both may open', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      walk(['c syn', 's syn', 'c synack', 's synack', 'c ack', 's ack']);
      expect(state()).toEqual([FLOW_STATES.ESTABLISHED]);
    });

    test('a change of policy keeps the state of what goes on', () => {
      walk([...handshake, 'c fin']);
      kernel.bump();
      walk(['s ack']);
      expect(kernel.flows()).toMatchObject([
        { state: FLOW_STATES.CLOSE_WAIT, revision: kernel.revision, direction: EGRESS },
      ]);
    });

    test('options move the payload, not the verdict', () => {
      const segment = tcpSegment(40000, 80, syn, Buffer.alloc(40));
      segment[12] = 15 << 4;
      expect(out(ipPacket(f.a, f.r, PROTO.tcp, segment)).action).toBe('pass');
    });

    test('packets of an established flow do not write it', () => {
      walk(handshake);
      const before = kernel.flows();
      // Within a second: what is older than that is written once, so that a flow in use does not end.
      for (let i = 0; i < 50 / SLOW; i++) walk(['c ack', 's ack']);
      expect(kernel.flows()).toEqual(before);
      kernel.ageFlows(3n * SECOND);
      walk(['s ack']);
      expect(kernel.flows()[0]!.last_ns).toBeGreaterThanOrEqual(before[0]!.last_ns - SECOND);
    });
  });
});
