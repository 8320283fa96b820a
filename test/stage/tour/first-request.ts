import { join } from 'node:path';
import { SLOW } from '../../support/slow.ts';
import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import {
  capture,
  captureAddress,
  lostSegments,
  type Packet,
  retransmittedSegments,
  TCP_ACK,
  TCP_SYN,
} from '../pcap.ts';
import type { AuditLine, Stage } from '../stage.ts';
import { curl, url } from './http.ts';
import { Demands, round, type Step } from './step.ts';

/** A claim of speed: only a machine that says how slow it is may take longer. */
const limitMs = 100 * SLOW;

interface First {
  readonly status: number;
  readonly connectMs: number;
  readonly handshakeMs: number;
  readonly held: number;
  readonly lost: number;
  readonly retransmitted: number;
}

async function heldSoFar(stage: Stage): Promise<number> {
  const status = (await stage.status('node-a')) as { hold: { taken: number } } | undefined;
  return status?.hold.taken ?? 0;
}

/** From SYN to SYN-ACK as the workload's own veth saw it. */
function connectMs(packets: readonly Packet[]): number {
  const syn = packets.find((p) => p.tcp !== undefined && (p.tcp.flags & (TCP_SYN | TCP_ACK)) === TCP_SYN);
  const answer = packets.find(
    (p) => p.tcp !== undefined && (p.tcp.flags & (TCP_SYN | TCP_ACK)) === (TCP_SYN | TCP_ACK),
  );
  return syn === undefined || answer === undefined ? Number.NaN : Number(answer.timeNs - syn.timeNs) / 1e6;
}

const succeeded = (lines: readonly AuditLine[], spiffeId: string) =>
  lines.filter((l) => l.kind === 'auth.succeeded' && l.source?.spiffeId === spiffeId);

async function first(stage: Stage, from: string, family: 4 | 6): Promise<First> {
  const backend = stage.workload('backend');
  const sender = stage.workload(from);
  const [source, target] = family === 4 ? [sender.address4, backend.address4] : [sender.address6, backend.address6];
  const heldBefore = await heldSoFar(stage);
  const filter = `tcp port ${BACKEND_HTTP_PORT}`;
  const [atSender, atBackend] = await Promise.all([
    capture(stage.netns(from), 'eth0', join(stage.dir, 'captures', `first-${from}.pcap`), filter, stage.env),
    capture(
      stage.netns('backend'),
      'eth0',
      join(stage.dir, 'captures', `first-${from}-backend.pcap`),
      filter,
      stage.env,
    ),
  ]);
  const response = await curl(stage, from, url(target, BACKEND_HTTP_PORT));
  const [sent, received] = await Promise.all([atSender.stop(), atBackend.stop()]);
  const event = succeeded(stage.audit('node-a'), `spiffe://example.org/${from}`).at(-1);
  return {
    status: response.status,
    connectMs: connectMs(sent),
    handshakeMs: Number(event?.detail?.handshake_ms ?? Number.NaN),
    held: (await heldSoFar(stage)) - heldBefore,
    lost: lostSegments(sent, received, captureAddress(source)),
    retransmitted: retransmittedSegments(sent) + retransmittedSegments(received),
  };
}

export const firstRequest: Step = {
  name: 'first_request',
  shows:
    'the very first request between two workloads that never met: held in the kernel while both prove themselves, then let go',
  async run(stage) {
    const demands = new Demands();
    const v4 = await first(stage, 'frontend', 4);
    const v6 = await first(stage, 'frontend6', 6);
    for (const [name, f] of [
      ['IPv4', v4],
      ['IPv6', v6],
    ] as const) {
      demands.that(f.status === 200, `${name}: HTTP status ${f.status}`);
      demands.that(f.connectMs < limitMs, `${name}: connected in ${f.connectMs} ms, not under ${limitMs}`);
      demands.that(f.held >= 1, `${name}: no packet was held`);
      demands.that(f.lost === 0, `${name}: ${f.lost} segments lost`);
      demands.that(f.retransmitted === 0, `${name}: ${f.retransmitted} segments sent again`);
      demands.that(Number.isFinite(f.handshakeMs), `${name}: no auth.succeeded event in the audit log`);
    }
    return demands.result(
      {
        status: v4.status,
        connect_ms: round(v4.connectMs),
        handshake_ms: round(v4.handshakeMs),
        held: v4.held,
        lost: v4.lost + v6.lost,
        retransmitted: v4.retransmitted + v6.retransmitted,
        ipv6_status: v6.status,
        ipv6_connect_ms: round(v6.connectMs),
        ipv6_handshake_ms: round(v6.handshakeMs),
        ipv6_held: v6.held,
      },
      [
        `frontend → backend over IPv4: ${v4.status}, connected in ${round(v4.connectMs)} ms (authentication ${round(v4.handshakeMs)} ms), ${v4.held} packet held`,
        `frontend6 → backend over IPv6: ${v6.status}, connected in ${round(v6.connectMs)} ms (authentication ${round(v6.handshakeMs)} ms), ${v6.held} packet held`,
        `captures on both veths: ${v4.lost + v6.lost} segments lost, ${v4.retransmitted + v6.retransmitted} sent again`,
      ],
    );
  },
};
