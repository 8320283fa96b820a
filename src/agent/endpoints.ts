/**
 * Workloads of this node from configuration to the kernel: finds the interface, takes the identity from the signed table,
 * gets a generation from the vouching host, and writes the datapath's entry, closed until the fence opens. Also where an
 * interface that went away, or an identity that changed, closes its endpoint.
 */
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { EndpointAttachment } from '../model/datapath.ts';
import type { IdentityTable } from '../model/identity.ts';
import type { IpAddress, SecurityIdentity, SpiffeId } from '../model/ids.ts';
import type { EndpointConfig } from './config.ts';

export interface OwnEndpoint {
  readonly endpoint: number;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly addresses: readonly IpAddress[];
}

/** Who vouches for this node's endpoints to others. */
export interface EndpointHost {
  /** `continues`: generation of the same endpoint before this agent's start. Calls back `opened` now or later. */
  add(endpoint: OwnEndpoint, continues?: bigint): { readonly generation: bigint; readonly open: boolean };
  close(endpoint: number): void;
  /** Nodes that it is shut to, or that must let go before it opens. */
  waitsFor?(endpoint: number): readonly string[];
}

export type EndpointState = 'open' | 'fenced' | 'no interface' | 'no identity' | 'not attached';

export interface EndpointView {
  readonly name: string;
  readonly interface: string;
  readonly spiffeId: SpiffeId;
  readonly addresses: readonly IpAddress[];
  readonly identity: SecurityIdentity | undefined;
  readonly endpoint: number | undefined;
  readonly state: EndpointState;
  /** Nodes that may still believe an earlier owner of its addresses: nothing passes between it and their workloads. */
  readonly waitsFor?: readonly string[];
  /** Why it is not attached. */
  readonly problem?: string;
}

interface Attached {
  readonly config: EndpointConfig;
  readonly own: OwnEndpoint;
  readonly ifindex: number;
  generation: bigint;
  open: boolean;
  /** The kernel refused its programs: closed in the maps, and tried again. */
  problem?: string;
}

const MAX_ENDPOINT = 4095;
/** Attaching takes the kernel some 10 to 30 ms for each interface. A node that starts with a thousand must meanwhile renew its
 *  leases and answer its peers: after this long the rest waits for the next turn of the event loop. */
const TURN_MS = 100;

/** Interfaces of this network namespace by name. */
export interface InterfaceIndex {
  indexOf(name: string): number | undefined;
}

export class Endpoints {
  readonly #configs: readonly EndpointConfig[];
  readonly #byInterface: ReadonlyMap<string, EndpointConfig>;
  readonly #interfaces: InterfaceIndex;
  readonly #datapath: Datapath;
  readonly #host: EndpointHost;
  readonly #identities: IdentityTable;
  readonly #audit: AuditSink;
  readonly #log: Logger;
  readonly #attached = new Map<string, Attached>();
  readonly #pinned: readonly EndpointAttachment[];
  /** To be attached, in order, when there is time. */
  readonly #waiting = new Set<EndpointConfig>();
  #turnEndsMs = 0;
  #closed = false;
  #nextId: number;

  constructor(o: {
    configs: readonly EndpointConfig[];
    interfaces: InterfaceIndex;
    datapath: Datapath;
    host: EndpointHost;
    identities: IdentityTable;
    audit: AuditSink;
    log: Logger;
  }) {
    this.#configs = o.configs;
    this.#byInterface = new Map(o.configs.map((config) => [config.interface, config]));
    this.#interfaces = o.interfaces;
    this.#datapath = o.datapath;
    this.#host = o.host;
    this.#identities = o.identities;
    this.#audit = o.audit;
    this.#log = o.log;
    this.#pinned = o.datapath.listEndpoints();
    this.#nextId = Math.max(0, ...this.#pinned.map((e) => e.endpoint)) + 1;
    // What the last agent left and the configuration no longer has: nobody answers for it any more.
    const wanted = new Set(this.#configs.map((c) => this.#interfaces.indexOf(c.interface)));
    for (const old of this.#pinned) if (!wanted.has(old.ifindex)) this.#datapath.removeEndpoint(old.endpoint);
  }

  /** Brings every configured endpoint to where its interface and identity say: what is to be closed at once, what is to be
   *  attached now or in one of the next turns. Cheap when nothing changed. */
  reconcile(): void {
    this.#inTurn(() => {
      for (const config of this.#configs) this.#reconcile(config);
    });
  }

  /** The same for those on these interfaces. */
  reconcileInterfaces(names: Iterable<string>): void {
    this.#inTurn(() => {
      for (const name of names) {
        const config = this.#byInterface.get(name);
        if (config !== undefined) this.#reconcile(config);
      }
    });
  }

  /** What waits to be attached waits for the next agent. */
  close(): void {
    this.#closed = true;
  }

  #inTurn(act: () => void): void {
    this.#turnEndsMs = performance.now() + TURN_MS;
    const pending = this.#waiting.size > 0;
    act();
    if (!pending && this.#waiting.size > 0) setImmediate(() => this.#goOn());
  }

  #goOn(): void {
    if (this.#closed) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    this.#inTurn(() => {
      for (const config of waiting) this.#reconcile(config);
    });
  }

  #reconcile(config: EndpointConfig): void {
    const ifindex = this.#interfaces.indexOf(config.interface);
    const identity = this.#identities.bySpiffeId(config.spiffeId)?.identity;
    const now = this.#attached.get(config.name);
    if (now !== undefined && (now.ifindex !== ifindex || now.own.identity !== identity)) this.#detach(now);
    if (ifindex === undefined || identity === undefined) return;
    const attached = this.#attached.get(config.name);
    if (attached !== undefined && attached.problem === undefined) return;
    if (performance.now() >= this.#turnEndsMs) {
      this.#waiting.add(config);
      return;
    }
    if (attached === undefined) this.#attach(config, ifindex, identity);
    else this.#put(attached);
  }

  /** The vouching host says that no peer can take this endpoint for an earlier owner of its addresses any more. */
  opened(endpoint: number): void {
    for (const attached of this.#attached.values()) {
      if (attached.own.endpoint !== endpoint || attached.open) continue;
      attached.open = true;
      this.#put(attached);
    }
  }

  view(): EndpointView[] {
    return this.#configs.map((config) => {
      const attached = this.#attached.get(config.name);
      const identity = this.#identities.bySpiffeId(config.spiffeId)?.identity;
      const state: EndpointState =
        attached?.problem !== undefined
          ? 'not attached'
          : attached !== undefined
            ? attached.open
              ? 'open'
              : 'fenced'
            : identity === undefined
              ? 'no identity'
              : this.#interfaces.indexOf(config.interface) === undefined
                ? 'no interface'
                : 'not attached';
      const { name, spiffeId, addresses } = config;
      const waitsFor = attached === undefined ? [] : (this.#host.waitsFor?.(attached.own.endpoint) ?? []);
      return {
        name,
        interface: config.interface,
        spiffeId,
        addresses,
        identity,
        endpoint: attached?.own.endpoint,
        state,
        ...(waitsFor.length === 0 ? {} : { waitsFor }),
        ...(attached?.problem === undefined ? {} : { problem: attached.problem }),
      };
    });
  }

  #attach(config: EndpointConfig, ifindex: number, identity: SecurityIdentity): void {
    const pinned = this.#pinned.find(
      (p) => p.open && p.ifindex === ifindex && p.identity === identity && sameSet(p.addresses, config.addresses),
    );
    const own: OwnEndpoint = {
      endpoint: pinned?.endpoint ?? this.#allocate(),
      identity,
      spiffeId: config.spiffeId,
      addresses: config.addresses,
    };
    const attached: Attached = { config, own, ifindex, generation: 0n, open: false };
    // Known before the host is told: it may open the endpoint while `add` runs, and that must wait for its generation.
    const hosted = this.#host.add(own, pinned?.generation);
    attached.generation = hosted.generation;
    this.#attached.set(config.name, attached);
    if (hosted.open) this.opened(own.endpoint);
    else this.#put(attached);
    this.#log.info(
      { endpoint: config.name, interface: config.interface, identity, open: attached.open },
      'endpoint attached',
    );
  }

  #detach(attached: Attached): void {
    this.#attached.delete(attached.config.name);
    // The kernel first: its queues are flushed before anybody is told that the address is free.
    this.#datapath.removeEndpoint(attached.own.endpoint);
    this.#host.close(attached.own.endpoint);
    this.#audit.emit({
      kind: 'endpoint.closed',
      source: { spiffeId: attached.own.spiffeId, identity: attached.own.identity, address: attached.own.addresses[0]! },
      detail: { endpoint: attached.config.name },
    });
  }

  #put(attached: Attached): void {
    const { own, config, ifindex, generation, open } = attached;
    const mac = config.mac === undefined ? undefined : Buffer.from(config.mac.replaceAll(':', ''), 'hex');
    try {
      this.#datapath.putEndpoint({
        endpoint: own.endpoint,
        identity: own.identity,
        generation,
        ifindex,
        mac,
        addresses: own.addresses,
        open,
      });
    } catch (thrown) {
      // What the kernel says of one interface must not end the agent of all the others. An interface that went meanwhile
      // is no problem at all: that is told next.
      if ((thrown as NodeJS.ErrnoException).code === 'ENODEV') return;
      const problem = asError(thrown).message;
      if (attached.problem !== problem)
        this.#log.error({ endpoint: config.name, interface: config.interface, error: problem }, 'not attached');
      attached.problem = problem;
      return;
    }
    delete attached.problem;
    if (!open) return;
    this.#audit.emit({
      kind: 'endpoint.opened',
      source: { spiffeId: own.spiffeId, identity: own.identity, address: own.addresses[0]! },
      detail: { endpoint: config.name, generation: String(generation) },
    });
  }

  /** Numbers go round before one is used again, so that a flow of an earlier endpoint cannot name a new one. */
  #allocate(): number {
    const taken = new Set([...this.#attached.values()].map((a) => a.own.endpoint));
    for (const pinned of this.#pinned) taken.add(pinned.endpoint);
    for (let tries = 0; tries < MAX_ENDPOINT; tries++) {
      const id = this.#nextId > MAX_ENDPOINT ? 1 : this.#nextId;
      this.#nextId = id + 1;
      if (!taken.has(id)) return id;
    }
    throw new RangeError(`more than ${MAX_ENDPOINT} endpoints on one node`);
  }
}

function sameSet(a: readonly IpAddress[], b: readonly IpAddress[]): boolean {
  return a.length === b.length && a.every((x) => b.includes(x));
}
