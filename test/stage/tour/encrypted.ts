import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import { capture, type Packet } from '../pcap.ts';
import type { Stage } from '../stage.ts';
import { UNDERLAY_BRIDGE } from '../topology.ts';
import { clearText } from './clear-text.ts';
import { curl, url } from './http.ts';
import { Demands, type Step } from './step.ts';

const REQUESTS = 20;

interface Seen {
  readonly ok: number;
  readonly packets: number;
  readonly tunnel: number;
  readonly marker: number;
}

/** What a capture in the middle of the underlay shows of requests that carry a marker. */
async function watch(stage: Stage, tunnelPort: number, file: string): Promise<Seen> {
  const marker = `marker-${randomBytes(12).toString('hex')}`;
  const backend = stage.workload('backend');
  const watching = await capture(
    stage.netns('under'),
    UNDERLAY_BRIDGE,
    join(stage.dir, 'captures', file),
    '',
    stage.env,
  );
  let ok = 0;
  for (let i = 0; i < REQUESTS; i++) {
    const target = i % 2 === 0 ? url(backend.address4, BACKEND_HTTP_PORT) : url(backend.address6, BACKEND_HTTP_PORT);
    const from = i % 2 === 0 ? 'frontend' : 'frontend6';
    if ((await curl(stage, from, target, { marker })).status === 200) ok++;
  }
  const packets = await watching.stop();
  const tunnel = packets.filter(
    (p: Packet) => p.protocol === 17 && (p.sourcePort === tunnelPort || p.destinationPort === tunnelPort),
  );
  const needle = Buffer.from(marker);
  return {
    ok,
    packets: packets.length,
    tunnel: tunnel.length,
    marker: packets.filter((p) => p.bytes.includes(needle)).length,
  };
}

const TUNNEL_PORT = 51871;

export const encrypted: Step = {
  name: 'encrypted',
  shows:
    'between the nodes only tunnel packets: a capture in the underlay, searched for a marker that the requests carry',
  async run(stage) {
    const demands = new Demands();
    const seen = await watch(stage, TUNNEL_PORT, 'encrypted.pcap');
    const status = (await stage.status('node-a')) as
      | { tunnel: { implementation: string; pskFrom: string } }
      | undefined;
    demands.that(seen.ok === REQUESTS, `${REQUESTS - seen.ok} of ${REQUESTS} requests failed`);
    demands.that(seen.tunnel > 0, 'no tunnel packet in the capture');
    demands.that(seen.marker === 0, `the marker stands in clear in ${seen.marker} packets`);
    return demands.result(
      {
        requests: REQUESTS,
        tunnel_packets: seen.tunnel,
        plaintext_packets: seen.marker,
        implementation: status?.tunnel.implementation ?? 'none',
        psk: status?.tunnel.pskFrom ?? 'none',
      },
      [
        `${REQUESTS} requests, ${seen.tunnel} WireGuard packets (${status?.tunnel.implementation}), marker found in ${seen.marker}`,
      ],
    );
  },
};

export const encryptedControl: Step = {
  name: 'encrypted_control',
  shows: 'the same search with encryption off (authentication.allowUnboundPath) finds the marker: so it can fail',
  async run(stage) {
    const demands = new Demands();
    await clearText(stage, true);
    let seen: Seen;
    try {
      seen = await watch(stage, TUNNEL_PORT, 'control.pcap');
    } finally {
      await clearText(stage, false);
    }
    demands.that(seen.ok === REQUESTS, `${REQUESTS - seen.ok} of ${REQUESTS} requests failed`);
    demands.that(seen.marker > 0, 'the search did not find the marker in clear traffic');
    demands.that(seen.tunnel === 0, `${seen.tunnel} tunnel packets although encryption is off`);
    return demands.result({ requests: REQUESTS, tunnel_packets: seen.tunnel, plaintext_packets: seen.marker }, [
      `${REQUESTS} requests in clear: the marker stands in ${seen.marker} packets`,
    ]);
  },
};
