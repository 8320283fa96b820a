/** What all agents of a scene wrote down (record.ts), as one trace for the model's monitor. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TraceEvent } from '../../model/trace.ts';

interface Line {
  readonly ev: string;
  readonly node: string;
  readonly ns: string;
  readonly [field: string]: unknown;
}

/** In the order of one clock, times in microseconds. */
export function readTraces(directory: string): TraceEvent[] {
  return readdirSync(directory)
    .flatMap((file) => withEndings(linesOf(join(directory, file))))
    .sort((a, b) => Number(BigInt(a.ns) - BigInt(b.ns)))
    .map(eventOf);
}

/** An agent that was killed may have left half a line. */
function linesOf(file: string): Line[] {
  return readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('{') && line.endsWith('}'))
    .map((line) => JSON.parse(line) as Line);
}

/** Nobody says that an agent was killed, nor that an endpoint went while none ran: the next agent's start does. */
function withEndings(lines: readonly Line[]): Line[] {
  const live = new Map<unknown, Line>();
  return lines.flatMap((line, at) => {
    if (line.ev === 'born') live.set(line.ip, line);
    if (line.ev === 'close') live.delete(line.ip);
    if (line.ev !== 'agent-start' || lines[at - 1]?.ev === 'node-start') return [line];
    const { node, ns } = line;
    const closes = [...live.values()].filter((born) => !goesOn(born, lines.slice(at)));
    for (const { ip } of closes) live.delete(ip);
    return [
      { ev: 'agent-stop', node, ns },
      ...closes.map(({ ip, generation }) => ({ ev: 'close', node, ns, ip, generation })),
      line,
    ];
  });
}

/** Is it the next owner of its address that the agent names? */
function goesOn({ ip, generation }: Line, after: readonly Line[]): boolean {
  const next = after.find((line) => line.ev === 'born' && line.ip === ip);
  return next?.continues === true && next.generation === generation;
}

function eventOf({ ns, ...event }: Line): TraceEvent {
  const { leaseEndNs, leaseMs, id } = event;
  return {
    ...event,
    t: microseconds(ns),
    ...(leaseEndNs === undefined ? {} : { leaseEnd: microseconds(leaseEndNs) }),
    ...(leaseMs === undefined ? {} : { leaseMs: Number(leaseMs) * 1000 }),
    // The model counts withdraws by their own ids.
    ...(event.ev === 'withdraw' ? { version: id } : {}),
  };
}

const microseconds = (ns: unknown): number => Number(BigInt(ns as string) / 1000n);
