/** One event of `countersign monitor` as a line for a person. */
import { colours as pc } from './colours.ts';

interface Party {
  readonly workload?: string;
  readonly spiffeId?: string;
  readonly identity?: number;
  readonly node?: string;
  readonly address?: string;
  readonly port?: number;
}

interface MonitorLine {
  readonly time: string;
  readonly kind: string;
  readonly verdict?: string;
  readonly reason?: string;
  readonly source?: Party;
  readonly destination?: Party;
  readonly policy?: string;
  readonly actor?: string;
  readonly correlation?: string;
  readonly sampled?: number;
  readonly detail?: Readonly<Record<string, string | number | boolean>>;
}

/** Told in a packet's line in their own place. */
const PACKET_DETAILS = new Set(['direction', 'protocol', 'auth_type', 'bytes', 'also', 'kernel_boot_ns']);

const paint: Readonly<Record<string, (text: string) => string>> = {
  allow: pc.green,
  drop: pc.red,
  observed: pc.yellow,
};

/** `json`: as the agent sent it. Coloured for a terminal only. */
export function eventLine(json: string): string {
  const event = JSON.parse(json, printable) as MonitorLine;
  // Hours to milliseconds, in UTC as everywhere.
  const time = pc.dim(event.time.slice(11, 23));
  const words = event.verdict === undefined ? plainWords(event) : packetWords(event, event.verdict);
  return [time, ...words].filter((word) => word !== '').join(' ');
}

/** What came from elsewhere does not move the cursor or break the line. */
function printable(_key: string, value: unknown): unknown {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return typeof value === 'string' ? value.replace(/[\x00-\x1f\x7f-\x9f]/g, '?') : value;
}

function packetWords(event: MonitorLine, verdict: string): string[] {
  const { direction, protocol, auth_type: authType, bytes, also } = event.detail ?? {};
  const colour = paint[verdict] ?? ((text: string) => text);
  return [
    colour(verdict.toUpperCase().padEnd(8)),
    event.reason === undefined ? '' : colour(event.reason),
    `${direction ?? ''}`,
    `${protocol ?? ''}`,
    between(event),
    authType === undefined || authType === 'none' ? '' : `auth ${authType}`,
    bytes === undefined ? '' : `${bytes} bytes`,
    event.policy === undefined ? '' : pc.cyan(event.policy),
    Number(also ?? 0) > 0 ? pc.dim(`(and ${also} more)`) : '',
    event.sampled === undefined ? '' : pc.dim(`(one of ${event.sampled})`),
    ...details(event, PACKET_DETAILS),
  ];
}

function plainWords(event: MonitorLine): string[] {
  if (event.kind === 'monitor.lost')
    return [pc.yellow(`${event.detail?.events} events lost: this reader did not keep up`)];
  return [
    pc.bold(event.kind),
    event.reason === undefined ? '' : pc.yellow(event.reason),
    between(event),
    event.actor === undefined ? '' : `by ${event.actor}`,
    event.policy === undefined ? '' : pc.cyan(event.policy),
    ...details(event, new Set()),
  ];
}

function between({ source, destination }: MonitorLine): string {
  if (source === undefined && destination === undefined) return '';
  if (destination === undefined) return party(source);
  return `${party(source)} → ${party(destination)}`;
}

function party(of: Party | undefined): string {
  if (of === undefined) return 'somebody';
  const { workload, spiffeId, identity, node, address, port } = of;
  const name =
    workload ?? spiffeId ?? (identity === undefined ? (node ?? '') : (RESERVED[identity] ?? `identity ${identity}`));
  const host = address === undefined ? '' : address.includes(':') ? `[${address}]` : address;
  const at = host === '' || port === undefined || port === 0 ? host : `${host}:${port}`;
  return [name, at].filter((word) => word !== '').join(' ');
}

/** As in Cilium. */
const RESERVED: Readonly<Record<number, string>> = { 0: 'unknown', 1: 'host', 2: 'world', 6: 'remote-node' };

function details({ detail }: MonitorLine, told: ReadonlySet<string>): string[] {
  return Object.entries(detail ?? {}).flatMap(([key, value]) => (told.has(key) ? [] : [pc.dim(`${key}=${value}`)]));
}
