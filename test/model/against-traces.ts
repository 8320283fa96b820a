/** Holds the monitor for traces against the model: what the model does, it accepts; what the model does without a rule, it refuses. */
import { REMOVED, type Row } from './rows.ts';
import { check, simulate } from './spin.ts';
import { accept, type TraceEvent } from './trace.ts';

const TICK_MS = 1_000;
const RUNS = 20;
const STEPS = 20_000;
/** Events that cannot be left out of a trace unnoticed. */
const NEEDED = ['born', 'ask', 'grant', 'delete', 'withdraw', 'withdraw-ack', 'reset', 'reset-ack'];
/** What a monitor of events cannot see: an entry that is believed too long, or a packet that comes to the wrong endpoint at once. */
const UNSEEN = new Set(['LeaseEveryPacket', 'FenceReceive', 'TunnelOrigin']);

/** A line that lease.pml prints, e.g. `EV ask node=1 peer=0 ip=0`. */
function fieldsOf(line: string): { ev: string; fields: Record<string, number> } {
  const [, ev, ...pairs] = line.split(/\s+/);
  return {
    ev: ev!,
    fields: Object.fromEntries(pairs.map((pair) => [pair.split('=')[0]!, Number(pair.split('=')[1])])),
  };
}

/** The model's steps as a trace of the code would say them. `lease`: in ticks. */
export function traceOf(lines: readonly string[], lease: number): TraceEvent[] {
  const clocks = new Map<string, number>();
  const nonces = new Map<string, number>();
  const born = new Map<number, { node: string; ip: string }>();
  const trace: TraceEvent[] = [0, 1, 2].flatMap((n) =>
    ['node-start', 'agent-start'].map((ev) => ({ ev, node: `n${n}`, incarnation: 1 })),
  );
  for (const line of lines.filter((l) => l.startsWith('EV '))) {
    const { ev, fields } = fieldsOf(line);
    const node = `n${fields.node}`;
    const peer = `n${fields.peer}`;
    const ip = `10.0.0.${fields.ip}`;
    const t = clocks.get(node) ?? 0;
    const { generation, identity } = fields;
    const base = { ev, node, t };
    const nonceOf = (who: string) => `${who}/${ip}/${nonces.get(`${who}/${ip}`) ?? 0}`;
    switch (ev) {
      case 'tick':
        clocks.set(node, t + TICK_MS);
        trace.push({ ...base, t: t + TICK_MS });
        break;
      case 'born':
        born.set(fields.endpoint!, { node, ip });
        trace.push({ ...base, ip, identity, generation });
        break;
      case 'ask':
        nonces.set(`${node}/${ip}`, (nonces.get(`${node}/${ip}`) ?? 0) + 1);
        trace.push({ ...base, peer, nonce: nonceOf(node), ips: [ip] });
        break;
      case 'grant':
        trace.push({
          ...base,
          peer,
          nonce: nonceOf(peer),
          leaseMs: lease * TICK_MS,
          vouches: [{ ip, identity, generation }],
        });
        break;
      case 'apply':
        trace.push({
          ...base,
          peer,
          ip,
          identity,
          generation,
          leaseEnd: t + fields.lease! * TICK_MS,
          nonce: nonceOf(node),
        });
        break;
      case 'withdraw':
        trace.push({ ...base, peer, id: fields.id, entries: [{ ip, generation }] });
        break;
      case 'reset': {
        const keeps = [...born]
          .filter(([e]) => ((fields.keeps! >> e) & 1) === 1)
          .map(([e, b]) => ({ ip: b.ip, generation: e }));
        trace.push({ ...base, peer, channel: 'c', keeps });
        break;
      }
      case 'withdraw-ack':
      case 'withdraw-acked':
        trace.push({ ...base, peer, id: fields.id });
        break;
      case 'reset-ack':
      case 'reset-acked':
        trace.push({ ...base, peer, channel: 'c' });
        break;
      case 'node-start':
        trace.push(base, { ...base, ev: 'agent-start' });
        break;
      case 'agent-start':
      case 'agent-stop':
      case 'node-crash':
        trace.push(base);
        break;
      default:
        trace.push({
          ...base,
          peer,
          ip,
          ...(generation === undefined ? {} : { generation }),
          ...(identity === undefined ? {} : { identity }),
          ...(fields.packet === undefined ? {} : { packet: String(fields.packet) }),
        });
    }
  }
  return trace;
}

/** `stepsOf`: of a counterexample that was found already. */
export async function againstTraces(
  say: (ok: boolean, text: string) => void,
  stepsOf: (row: Row) => readonly string[] | undefined,
): Promise<void> {
  let events = 0;
  const kinds = new Set<string>();
  const noticed = new Map<string, string>();
  let refused: string | undefined;
  for (let seed = 1; seed <= RUNS && refused === undefined; seed++) {
    const size =
      seed % 2 === 0 ? ['NH=1', 'NR=2', 'NX=2', 'NE=3', 'L=2'] : ['NH=2', 'NR=1', 'NX=2', 'NE=3', 'L=2', 'TWOCHANNELS'];
    const trace = traceOf(await simulate('lease', size, seed, STEPS), 2);
    events += trace.length;
    for (const { ev } of trace) kinds.add(ev);
    for (const kind of NEEDED) {
      const without = accept(trace.filter(({ ev }) => ev !== kind));
      if (!without.ok) noticed.set(kind, without.rule);
    }
    const verdict = accept(trace);
    if (!verdict.ok)
      refused = `seed ${seed}, event ${verdict.line} ${JSON.stringify(trace[verdict.line])}: ${verdict.rule}: ${verdict.why}`;
  }
  const isFull = ['born', 'open', 'close', 'ask', 'grant', 'apply', 'withdraw-acked', 'reset-acked'].every((ev) =>
    kinds.has(ev),
  );
  say(
    refused === undefined && isFull,
    `traces: ${RUNS} random runs of the model, ${events} events, are accepted${refused === undefined ? '' : `: ${refused}`}`,
  );
  for (const kind of NEEDED) {
    const rule = noticed.get(kind);
    say(
      rule !== undefined,
      `traces: without its ${kind} events a run is ${rule === undefined ? 'accepted' : `refused by ${rule}`}`,
    );
  }
  for (const row of REMOVED.filter((r) => r.model === 'lease' && !r.without.some((rule) => UNSEEN.has(rule)))) {
    const steps = stepsOf(row) ?? (await check(row, 60_000)).steps;
    const lease = row.size.includes('L=2') ? 2 : 1;
    const verdict = accept(traceOf(steps, lease));
    const how = verdict.ok ? 'accepted' : `refused by ${verdict.rule}`;
    say(!verdict.ok, `traces: what happens without ${row.without.join(', ')} is ${how}`);
  }
}
