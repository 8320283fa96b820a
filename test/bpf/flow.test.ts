/** Flows: replies pass without a rule of their own, and nothing else does; a change is in force for the next packet. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Kernel, MARK_TUNNEL, MARK_UNDERLAY, stamped, unavailable } from './support/kernel.ts';
import { echoReply, echoRequest, ethernet, ip, TCP, tcp, tooBig, udp } from './support/packets.ts';
import { A, B, EGRESS, families, HOST, INGRESS, makeWorld, R, settle } from './support/world.ts';

const SECOND = 1_000_000_000n;

describe.skipIf(unavailable)('flows', () => {
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
  const denied = { action: 'drop', reasons: ['POLICY_DENIED'] };
  const stray = { action: 'drop', reasons: ['STRAY'] };

  describe.each(families)('$name', (f) => {
    const open = () => {
      expect(out(tcp(f.a, f.r, 40000, 80)).action).toBe('pass');
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.syn | TCP.ack)).action).toBe('pass');
      expect(out(tcp(f.a, f.r, 40000, 80, TCP.ack)).action).toBe('pass');
    };

    test('a reply passes, though no rule allows its direction', () => {
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
      open();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack)).action).toBe('pass');
    });

    test.each([
      ['another port of the server', (): Buffer => tcp(f.r, f.a, 81, 40000, TCP.ack)],
      ['to another port of the client', (): Buffer => tcp(f.r, f.a, 80, 40001, TCP.ack)],
      ['another protocol', (): Buffer => udp(f.r, f.a, 80, 40000)],
      ['a new connection over the same ports', (): Buffer => tcp(f.r, f.a, 80, 40000, TCP.syn)],
    ])('what is no reply does not pass: %s', (_, packet) => {
      open();
      expect(into(packet())).toMatchObject(denied);
    });

    test('the reply of a flow that came in passes out', () => {
      kernel.clear('cs_policy');
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      expect(out(tcp(f.a, f.r, 80, 40000, TCP.ack))).toMatchObject(denied);
      expect(into(tcp(f.r, f.a, 40000, 80)).action).toBe('pass');
      expect(out(tcp(f.a, f.r, 80, 40000, TCP.syn | TCP.ack))).toMatchObject({
        action: 'pass',
        mark: stamped(A.endpoint),
      });
    });

    test('a policy change ends a running flow with the next packet, replies included', () => {
      open();
      kernel.clear('cs_policy');
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack)).action).toBe('pass'); // not yet in force
      kernel.bump();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
      expect(out(tcp(f.a, f.r, 40000, 80, TCP.ack))).toMatchObject(denied);
    });

    test('a change that leaves its rule alone does not disturb it: the flow is judged in its own direction', () => {
      open();
      kernel.bump();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack)).action).toBe('pass');
      expect(kernel.flows()).toMatchObject([{ revision: kernel.revision, direction: EGRESS }]);
    });

    test('a removed vouch ends it', () => {
      open();
      kernel.removeAddress(f.r);
      kernel.bump();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject({ action: 'drop', reasons: ['NO_VOUCH'] });
    });

    test('another identity on the remote address is judged as itself', () => {
      open();
      kernel.address(f.r, { identity: R.identity + 1, node: R.node, lease: kernel.now() + SECOND });
      kernel.bump();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
      expect(out(tcp(f.a, f.r, 40000, 80, TCP.ack))).toMatchObject(denied);
    });

    test('another endpoint on the local address does not inherit it', () => {
      open();
      kernel.endpoint({ endpoint: 9, identity: A.identity });
      kernel.address(f.a, { identity: A.identity, endpoint: 9 });
      kernel.bump();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
    });

    test.each([
      ['without any mark', 0, 'UNENCRYPTED'],
      ['in clear from the underlay', MARK_UNDERLAY, 'UNENCRYPTED'],
      ['with the stamp of a local endpoint', stamped(B.endpoint), 'SPOOFED_STAMP'],
    ])('a packet of the flow that comes %s is dropped', (_, mark, reason) => {
      open();
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack), mark)).toMatchObject({ action: 'drop', reasons: [reason] });
    });

    test('echo replies belong to their request', () => {
      expect(into(echoReply(f.r, f.a, 77))).toMatchObject(stray);
      expect(out(echoRequest(f.a, f.r, 77)).action).toBe('pass');
      expect(into(echoReply(f.r, f.a, 77)).action).toBe('pass');
      expect(into(echoReply(f.r, f.a, 78))).toMatchObject(stray);
      expect(out(echoReply(f.a, f.r, 77))).toMatchObject(stray);
      expect(into(echoRequest(f.r, f.a, 77))).toMatchObject(denied);
    });

    test('both sides may ping each other under one identifier', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      expect(out(echoRequest(f.a, f.r, 77)).action).toBe('pass');
      expect(into(echoRequest(f.r, f.a, 77)).action).toBe('pass');
      expect(out(echoReply(f.a, f.r, 77)).action).toBe('pass');
      expect(into(echoReply(f.r, f.a, 77)).action).toBe('pass');
      expect(kernel.flows()).toHaveLength(2);
    });

    test('a UDP flow without an answer ends after 30 s, one with an answer after 120 s', () => {
      const request = udp(f.a, f.r, 40000, 53);
      const reply = udp(f.r, f.a, 53, 40000);
      out(request);
      kernel.ageFlows(28n * SECOND);
      expect(into(reply).action).toBe('pass');
      kernel.ageFlows(118n * SECOND);
      expect(into(reply).action).toBe('pass');
      kernel.ageFlows(122n * SECOND);
      expect(into(reply)).toMatchObject(denied);
      kernel.clear('cs_flows');
      out(request);
      kernel.ageFlows(32n * SECOND);
      expect(into(reply)).toMatchObject(denied);
    });

    test('an echo waits 30 s for its answer', () => {
      out(echoRequest(f.a, f.r, 77));
      kernel.ageFlows(28n * SECOND);
      expect(into(echoReply(f.r, f.a, 77)).action).toBe('pass');
      kernel.ageFlows(32n * SECOND);
      expect(into(echoReply(f.r, f.a, 77))).toMatchObject(stray);
    });

    test('a flow that is lost allows nothing: replies wait for the client’s next packet', () => {
      open();
      kernel.clear('cs_flows');
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
      expect(out(tcp(f.a, f.r, 40000, 80, TCP.ack)).action).toBe('pass');
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack)).action).toBe('pass');
    });

    test('while the revision is "stateless" no flow is made', () => {
      kernel.config({ revision: 0xffff_ffff_ffff_ffffn });
      expect(out(tcp(f.a, f.r, 40000, 80)).action).toBe('pass');
      expect(kernel.flows()).toEqual([]);
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.ack))).toMatchObject(denied);
    });

    describe('ICMP errors', () => {
      const sent = tcp(f.a, f.r, 40000, 80);
      const noFlow = { action: 'drop', reasons: ['ICMP_TYPE'] };

      test('pass with the flow they quote, from its other side and from this host', () => {
        expect(into(tooBig(f.r, f.a, sent))).toMatchObject(noFlow);
        open();
        expect(into(tooBig(f.r, f.a, sent)).action).toBe('pass');
        expect(into(tooBig(f.host, f.a, sent), 0).action).toBe('pass');
      });

      test('pass from a router on the way, but not into a flow that needed proof', () => {
        open();
        expect(into(tooBig(f.world, f.a, sent), 0).action).toBe('pass');
        kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS }, { auth: 1 });
        kernel.auth({ local: A.identity, remote: R.identity, node: R.node });
        kernel.bump();
        open();
        expect(into(tooBig(f.world, f.a, sent), 0)).toMatchObject(noFlow);
        expect(into(tooBig(f.host, f.a, sent), 0).action).toBe('pass');
      });

      test('do not pass from elsewhere, for other flows, or in the wrong direction', () => {
        open();
        expect(into(tooBig(f.r, f.a, sent), 0)).toMatchObject(noFlow);
        expect(into(tooBig(f.r, f.a, sent), MARK_UNDERLAY)).toMatchObject(noFlow);
        expect(into(tooBig(f.b, f.a, sent), stamped(B.endpoint))).toMatchObject(noFlow);
        expect(into(tooBig(f.nobody, f.a, sent), 0)).toMatchObject(noFlow);
        expect(into(tooBig(f.r, f.a, tcp(f.a, f.r, 40001, 80)))).toMatchObject(noFlow);
        expect(into(tooBig(f.r, f.a, tcp(f.r, f.a, 80, 40000)))).toMatchObject(noFlow);
        expect(into(tooBig(f.r, f.a, tcp(f.b, f.r, 40000, 80)))).toMatchObject(noFlow);
        expect(out(tooBig(f.a, f.r, sent))).toMatchObject(noFlow);
      });

      test('go out about what came in', () => {
        open();
        expect(out(tooBig(f.a, f.r, tcp(f.r, f.a, 80, 40000)))).toMatchObject({
          action: 'pass',
          mark: stamped(A.endpoint),
        });
        expect(out(tooBig(f.a, f.world, tcp(f.r, f.a, 80, 40000)))).toMatchObject(noFlow);
      });

      test('do not outlive the verdict', () => {
        open();
        kernel.bump();
        expect(into(tooBig(f.r, f.a, sent))).toMatchObject(noFlow);
      });

      test('an error about an error is dropped', () => {
        open();
        expect(into(tooBig(f.r, f.a, tooBig(f.a, f.r, tcp(f.r, f.a, 80, 40000))))).toMatchObject(noFlow);
      });
    });

    test('the world’s and the host’s flows carry no mark', () => {
      kernel.policy({ local: A.identity, remote: HOST, direction: INGRESS });
      expect(into(tcp(f.host, f.a, 40000, 80), 0).action).toBe('pass');
      expect(out(tcp(f.a, f.host, 80, 40000, TCP.syn | TCP.ack)).action).toBe('pass');
      expect(into(tcp(f.host, f.a, 40000, 80, TCP.ack), 0).action).toBe('pass');
      expect(into(tcp(f.host, f.a, 40000, 80, TCP.ack), MARK_TUNNEL)).toMatchObject({
        action: 'drop',
        reasons: ['NOT_STAMPED'],
      });
    });
  });

  test('the same ports of the two families are two flows', () => {
    const [v4, v6] = [families[0]!, families[1]!];
    out(tcp(v4.a, v4.r, 40000, 80));
    expect(into(tcp(v6.r, v6.a, 80, 40000, TCP.ack))).toMatchObject(denied);
    expect(into(tcp(ip('8.0.2.30'), v4.a, 80, 40000, TCP.ack)).action).toBe('pass');
  });

  test('however full the table of flows, nothing passes that no rule or living flow allows', () => {
    const small = makeWorld({ cs_flows: 64 });
    try {
      const [f] = [families[0]!];
      small.policy({ local: A.identity, remote: R.identity, dport: 53, proto: 17, direction: EGRESS });
      for (let port = 20_000; port < 22_000; port++) small.fire('from_workload', ethernet(udp(f.a, f.r, port, 53)));
      expect(small.flows().length).toBeLessThanOrEqual(64 * 2);
      let passed = 0;
      for (let port = 20_000; port < 22_000; port += port < 21_800 ? 20 : 1) {
        const reply = ethernet(udp(f.r, f.a, 53, port));
        const verdict = small.run('to_workload', reply, { mark: MARK_TUNNEL });
        if (verdict.action === 'pass') passed++;
        else expect(verdict.reasons).toEqual(['POLICY_DENIED']);
      }
      // Those of the flows that are left, and no more.
      expect(passed).toBeGreaterThan(0);
      expect(passed).toBeLessThanOrEqual(64 * 2);
      for (let port = 21_980; port < 22_000; port++) {
        expect(small.run('to_workload', ethernet(udp(f.r, f.a, 54, port)), { mark: MARK_TUNNEL }).action).toBe('drop');
        expect(small.run('from_workload', ethernet(udp(f.a, f.r, port, 54))).action).toBe('drop');
      }
    } finally {
      small.close();
    }
  });
});
