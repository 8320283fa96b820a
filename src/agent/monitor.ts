/**
 * `countersign monitor`: events of this node as they happen, for whoever asks on the admin socket. Each listener has its filter
 * and a bounded queue: a slow one loses events and is told how many. Allowed verdicts are sampled in the kernel while
 * somebody asks for them, and less often when there are too many to tell.
 */
import { CountersignError } from '../base/errors.ts';
import { dropReasons } from '../base/registry/drop-reasons.gen.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import type { AuditEvent, AuditParty, AuditSink } from '../model/audit-event.ts';
import type { IpAddress } from '../model/ids.ts';
import type { PacketEvent } from './packet-events.ts';
import { protocolNames, protocolNumber } from './protocols.ts';

export type PacketVerdict = 'allow' | 'drop' | 'observed';

/** What is empty or 0 asks for everything. */
export interface MonitorFilter {
  readonly kinds: readonly string[];
  /** Workload name, SPIFFE ID or address. */
  readonly from: readonly string[];
  readonly to: readonly string[];
  readonly reasons: readonly string[];
  /** Destination port. */
  readonly port: number;
  readonly protocol: string;
  readonly verdicts: readonly string[];
  /** One of so many allowed verdicts that were reached in full; 0: none. */
  readonly sample: number;
}

/** Where a listener's lines go. */
export interface MonitorSink {
  /** Lines that were taken and have not left yet. */
  readonly queued: number;
  write(json: string): void;
}

export interface Listener {
  /** There is room again: a listener that lost something hears of it now. */
  writable(): void;
  stop(): void;
}

export interface MonitorOptions {
  /** Name of an own workload by its address. */
  workloadAt(address: IpAddress): string | undefined;
  /** One of so many allowed verdicts becomes an event; 0: none. */
  setSample(oneOf: number): void;
  nowMs(): number;
}

/** What nothing can match would wait for ever. @throws CountersignError bad-input */
export function checkFilter(filter: MonitorFilter): MonitorFilter {
  for (const reason of filter.reasons) {
    if (!(reason in dropReasons) && !(reason in reasonCodes)) {
      throw new CountersignError(
        'bad-input',
        `--reason ${reason}: no such reason; docs/drop-reasons.md lists those of the kernel`,
      );
    }
  }
  for (const verdict of filter.verdicts) {
    if (!Object.values(VERDICTS).includes(verdict as PacketVerdict))
      throw new CountersignError('bad-input', `--verdict ${verdict}: there are allow, drop and observed`);
  }
  if (filter.protocol !== '' && protocolNumber(filter.protocol) === undefined && !/^\d{1,3}$/.test(filter.protocol)) {
    throw new CountersignError(
      'bad-input',
      `--protocol ${filter.protocol}: there are ${protocolNames.join(', ')}, and numbers`,
    );
  }
  if (filter.port > 65_535) throw new CountersignError('bad-input', `--port ${filter.port}: give a number up to 65535`);
  return filter;
}

type MonitorEvent = Omit<AuditEvent, 'kind'> & { readonly kind: AuditEvent['kind'] | PacketEvent['kind'] };

const QUEUE = 1024;
/** Allowed verdicts told in one window; more, and the kernel samples more thinly. */
const WINDOW_MS = 100;
const WINDOW_EVENTS = 200;
const MAX_SAMPLE = 1 << 20;

const VERDICTS: Readonly<Record<string, PacketVerdict>> = {
  'packet.dropped': 'drop',
  'packet.observed': 'observed',
  'packet.allowed': 'allow',
};

interface Registered {
  readonly filter: MonitorFilter;
  readonly sink: MonitorSink;
  lost: number;
  /** Thins the kernel's samples to what this listener asked for. */
  credit: number;
}

export class Monitor implements AuditSink {
  readonly #log: AuditSink;
  readonly #options: MonitorOptions;
  readonly #listeners = new Set<Registered>();
  /** What the listeners ask for, and what the kernel does: the same or more thinly. */
  #asked = 0;
  #sample = 0;
  #window = { startMs: 0, events: 0 };

  constructor(log: AuditSink, options: MonitorOptions) {
    this.#log = log;
    this.#options = options;
  }

  emit(event: AuditEvent): void {
    this.#log.emit(event);
    this.#tell(event);
  }

  /** A sampled verdict: for listeners only. */
  allowed(event: PacketEvent): void {
    if (this.#sample === 0) return;
    this.#govern();
    this.#tell(event, this.#sample);
  }

  listen(filter: MonitorFilter, sink: MonitorSink): Listener {
    const registered: Registered = { filter, sink, lost: 0, credit: 0 };
    this.#listeners.add(registered);
    this.#askForSamples();
    return {
      writable: () => this.#tellLoss(registered),
      stop: () => {
        if (this.#listeners.delete(registered)) this.#askForSamples();
      },
    };
  }

  #tell(event: MonitorEvent, sample = 0): void {
    if (this.#listeners.size === 0) return;
    const verdict = VERDICTS[event.kind];
    const source = this.#withWorkload(event.source);
    const destination = this.#withWorkload(event.destination);
    let json: string | undefined;
    for (const listener of this.#listeners) {
      const { filter, sink } = listener;
      if (!matches(filter, event, verdict, source, destination)) continue;
      if (sample > 0 && !isDue(listener, sample)) continue;
      if (sink.queued >= QUEUE) {
        listener.lost += 1;
        continue;
      }
      this.#tellLoss(listener);
      json ??= JSON.stringify({
        time: new Date(this.#options.nowMs()).toISOString(),
        ...event,
        ...(verdict === undefined ? {} : { verdict }),
        ...(sample > 1 ? { sampled: sample } : {}),
        ...(source === undefined ? {} : { source }),
        ...(destination === undefined ? {} : { destination }),
      });
      sink.write(json);
    }
  }

  #tellLoss(listener: Registered): void {
    if (listener.lost === 0 || listener.sink.queued >= QUEUE) return;
    const time = new Date(this.#options.nowMs()).toISOString();
    listener.sink.write(JSON.stringify({ time, kind: 'monitor.lost', detail: { events: listener.lost } }));
    listener.lost = 0;
  }

  #withWorkload(party: AuditParty | undefined): (AuditParty & { readonly workload?: string }) | undefined {
    if (party === undefined) return undefined;
    const own = party.address === undefined ? undefined : this.#options.workloadAt(party.address as IpAddress);
    const workload = own ?? party.spiffeId?.split('/').at(-1);
    return workload === undefined ? party : { ...party, workload };
  }

  #askForSamples(): void {
    const asked = [...this.#listeners].flatMap(({ filter }) => (wantsAllowed(filter) ? [filter.sample] : []));
    this.#asked = asked.length === 0 ? 0 : Math.min(MAX_SAMPLE, ...asked);
    this.#setSample(this.#asked);
  }

  /** The agent has more to do than to tell of what is allowed. */
  #govern(): void {
    const now = this.#options.nowMs();
    this.#window.events += 1;
    if (now - this.#window.startMs >= WINDOW_MS || now < this.#window.startMs) {
      const events = this.#window.events;
      this.#window = { startMs: now, events: 0 };
      if (events < WINDOW_EVENTS / 4 && this.#sample > this.#asked) {
        this.#setSample(Math.max(this.#asked, this.#sample >> 1));
      }
    } else if (this.#window.events >= WINDOW_EVENTS && this.#sample < MAX_SAMPLE) {
      this.#window = { startMs: now, events: 0 };
      this.#setSample(this.#sample * 2);
    }
  }

  #setSample(oneOf: number): void {
    if (oneOf === this.#sample) return;
    this.#sample = oneOf;
    this.#options.setSample(oneOf);
  }
}

function wantsAllowed(filter: MonitorFilter): boolean {
  return filter.sample > 0 && (filter.verdicts.length === 0 || filter.verdicts.includes('allow'));
}

/** The kernel tells one of `sample`; this listener wants one of its own number. */
function isDue(listener: Registered, sample: number): boolean {
  const wanted = listener.filter.sample;
  if (wanted === 0) return false;
  listener.credit += Math.min(1, sample / wanted);
  if (listener.credit < 1) return false;
  listener.credit -= 1;
  return true;
}

function matches(
  filter: MonitorFilter,
  event: MonitorEvent,
  verdict: PacketVerdict | undefined,
  source: AuditParty | undefined,
  destination: AuditParty | undefined,
): boolean {
  const { kinds, reasons, verdicts, from, to, port, protocol } = filter;
  if (kinds.length > 0 && !kinds.includes(event.kind)) return false;
  if (reasons.length > 0 && (event.reason === undefined || !reasons.includes(event.reason))) return false;
  if (verdicts.length > 0 && (verdict === undefined || !verdicts.includes(verdict))) return false;
  if (port !== 0 && destination?.port !== port) return false;
  if (protocol !== '' && event.detail?.protocol !== protocol) return false;
  return isNamed(from, source) && isNamed(to, destination);
}

function isNamed(wanted: readonly string[], party: (AuditParty & { readonly workload?: string }) | undefined): boolean {
  if (wanted.length === 0) return true;
  if (party === undefined) return false;
  const { workload, spiffeId, address } = party;
  return wanted.some((name) => name === workload || name === spiffeId || name === address);
}
