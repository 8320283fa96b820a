import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { native } from '../../../native/index.ts';
import { BACKEND_UDP_PORT } from '../demo-spec.ts';
import { capture, type Packet } from '../pcap.ts';
import { until } from '../shell.ts';
import type { AuditLine, Stage } from '../stage.ts';
import { Demands, round, type Step } from './step.ts';

const RATE = 1000;

const wallNs = () => BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));

/** The first drop event the kernel of either node reported for a packet of this address at or after a boot time. */
function firstDrop(stage: Stage, address: string, sinceBootNs: bigint): { bootNs: bigint; reason: string } | undefined {
  return stage.spec.nodes
    .flatMap((node) => stage.audit(node.name))
    .filter(
      (l: AuditLine) =>
        l.kind === 'packet.dropped' && l.source?.address === address && l.detail?.kernel_boot_ns !== undefined,
    )
    .map((l) => ({ bootNs: BigInt(l.detail!.kernel_boot_ns as string), reason: l.reason ?? '' }))
    .filter((drop) => drop.bootNs >= sinceBootNs)
    .sort((a, b) => (a.bootNs < b.bootNs ? -1 : 1))[0];
}

export const revoked: Step = {
  name: 'revoked',
  shows:
    "'countersign svid revoke' while 1,000 packets/s flow: the kernel drops at once, the sender goes on, an unrelated pair loses nothing",
  async run(stage) {
    const demands = new Demands();
    const backend = stage.workload('backend');
    const frontend = stage.workload('frontend');
    const monitor = stage.workload('monitor');
    const receiver = stage.spawnIn(
      'backend',
      'udp-receiver',
      'udp-receiver.ts',
      String(backend.uid),
      String(BACKEND_UDP_PORT),
    );
    await until('the UDP receiver', 5000, () => (stage.tail('udp-receiver').includes('listening') ? true : undefined));
    const filter = `udp dst port ${BACKEND_UDP_PORT}`;
    const file = (name: string) => join(stage.dir, 'captures', `revoked-${name}.pcap`);
    const [atBackend, atFrontend, atMonitor] = await Promise.all([
      capture(stage.netns('backend'), 'eth0', file('backend'), filter, stage.env),
      capture(stage.netns('frontend'), 'eth0', file('frontend'), filter, stage.env),
      capture(stage.netns('monitor'), 'eth0', file('monitor'), filter, stage.env),
    ]);
    const send = (name: string, uid: number, rate: number) =>
      stage.spawnIn(
        name,
        `udp-${name}`,
        'udp-sender.ts',
        String(uid),
        backend.address4,
        String(BACKEND_UDP_PORT),
        String(rate),
      );
    send('frontend', frontend.uid, RATE);
    send('monitor', monitor.uid, RATE / 10);
    await until('both senders', 5000, () =>
      ['frontend', 'monitor'].every((n) => stage.tail(`udp-${n}`).includes('sending')) ? true : undefined,
    );
    await delay(1000); // the traffic itself: a second of it before, a second of it after

    const startedBootNs = native().bootTimeNs();
    const started = performance.now();
    const reply = (await stage.cli(
      'svid',
      'revoke',
      '--spiffe-id',
      'spiffe://example.org/frontend',
      '--reason',
      'shown in the tour',
      '--socket',
      stage.serverSocket,
      '-o',
      'json',
    )) as {
      inForce: string[];
      missing: string[];
      inForceMs: number;
    };
    const returnedBootNs = native().bootTimeNs();
    const returnedWallNs = wallNs();
    const commandMs = performance.now() - started;
    const drop = await until('the first drop event in an audit log', 3000, () =>
      firstDrop(stage, frontend.address4, startedBootNs),
    ).catch(() => undefined);
    await delay(1000);
    await Promise.all([stage.stop('udp-frontend'), stage.stop('udp-monitor')]);
    const [received, sent, monitorSent] = await Promise.all([atBackend.stop(), atFrontend.stop(), atMonitor.stop()]);
    await stage.stop('udp-receiver');
    receiver.kill();

    const toDropMs = drop === undefined ? Number.NaN : Number(drop.bootNs - returnedBootNs) / 1e6;
    // The later of both: the command's word that it is in force, and the kernel's first drop.
    const after = returnedWallNs + (toDropMs > 0 ? BigInt(Math.round(toDropMs * 1e6)) : 0n);
    const of = (packets: readonly Packet[], address: string) => packets.filter((p) => p.source === address);
    const arrivedAfter = of(received, frontend.address4).filter((p) => p.timeNs > after).length;
    const arrivedBefore = of(received, frontend.address4).length - arrivedAfter;
    const sentAfter = of(sent, frontend.address4).filter((p) => p.timeNs > after).length;
    const monitorLost = of(monitorSent, monitor.address4).length - of(received, monitor.address4).length;
    demands.that(drop !== undefined, 'no drop event of the kernel');
    demands.that(arrivedBefore > RATE / 2, `only ${arrivedBefore} packets arrived before`);
    demands.that(arrivedAfter === 0, `${arrivedAfter} packets arrived after it`);
    demands.that(sentAfter > RATE / 2, `the sender stopped: ${sentAfter} packets after the revocation`);
    demands.that(monitorLost === 0, `the unrelated pair lost ${monitorLost} packets`);
    demands.that(reply.missing.length === 0, `not in force on ${reply.missing.join(', ')}`);
    return demands.result(
      {
        revoke_to_drop_ms: round(Math.max(0, toDropMs)),
        first_drop_after_start_ms: drop === undefined ? -1 : round(Number(drop.bootNs - startedBootNs) / 1e6),
        command_ms: round(commandMs),
        in_force_ms: round(reply.inForceMs),
        reason: drop?.reason ?? 'none',
        arrived_before: arrivedBefore,
        arrived_after: arrivedAfter,
        sent_after: sentAfter,
        unrelated_sent: of(monitorSent, monitor.address4).length,
        unrelated_lost: monitorLost,
      },
      [
        `revoked; in force on ${reply.inForce.join(' and ')} after ${round(reply.inForceMs)} ms`,
        drop === undefined
          ? 'no drop event'
          : `the kernel's first drop (${drop.reason}) ${toDropMs > 0 ? `${round(toDropMs)} ms after the command's return` : `${round(-toDropMs)} ms before the command returned`}`,
        `frontend went on: ${sentAfter} packets sent afterwards, ${arrivedAfter} arrived`,
        `monitor → backend meanwhile: ${of(monitorSent, monitor.address4).length} sent, ${monitorLost} lost`,
      ],
    );
  },
};
