/**
 * The models' rules as a monitor: reads a trace of what a node's code did, event by event, and refuses the first event that a rule forbids,
 * by that rule's name. It sees all nodes, so it knows what no single node knows: who really holds what. The vocabulary is in README.md.
 */
import {
  type Entry,
  isNewer,
  isOpen,
  key,
  type Owner,
  type Request,
  type Said,
  type Version,
} from './monitor-state.ts';
import type { AcceptOptions, TraceEvent } from './trace.ts';
import { generationsOf, must, text, version } from './trace-fields.ts';

export class Monitor {
  readonly #drainMs: number;
  readonly #tunnels: boolean;
  readonly #clocks = new Map<string, number>();
  readonly #incarnations = new Map<string, bigint>();
  /** node → agents' lives so far; 1: nobody can hold anything of an earlier one. */
  readonly #lives = new Map<string, number>();
  readonly #booted = new Set<string>();
  readonly #owners = new Map<string, Owner>();
  readonly #lastVersion = new Map<string, Version>();
  readonly #closedAt = new Map<string, number>();
  /** host|ip|peer → what the peer may hold and has not let go. */
  readonly #owes = new Map<string, Version[]>();
  /** host|life|peer, host|life|ip|peer: acked since the agent began. */
  readonly #acked = new Set<string>();
  /** host|ip|peer → the host's time at the last ack. */
  readonly #ackedAt = new Map<string, number>();
  readonly #kernel = new Map<string, Entry>();
  readonly #tunnel = new Map<string, string>();
  readonly #requests = new Map<string, Request>();
  readonly #renewals = new Map<string, { peer: string; t: number; leaseMs: number; version: bigint }>();
  /** receiver|host|ip → let go up to here. */
  readonly #buried = new Map<string, Version>();
  readonly #seen = new Map<string, bigint>();
  readonly #withdraws = new Map<string, Said>();
  readonly #versions = new Map<string, bigint>();
  readonly #resets = new Map<
    string,
    {
      incarnation: bigint;
      keeps: Map<string, bigint> | undefined;
      /** What the ack says is held of it; undefined: it does not say. */
      kept: Map<string, bigint> | undefined;
      acked: boolean;
      ended: string[];
    }
  >();
  /** host|ip|peer: the peer's machine has ended since it was told. What it had sent is older than its boot, and no ack is a measure of it. */
  readonly #orphaned = new Set<string>();
  readonly #packets = new Map<string, { identity: unknown; meant: Version | undefined; from: string }>();

  constructor(options: AcceptOptions = {}) {
    this.#drainMs = options.drainMs ?? 0;
    this.#tunnels = options.tunnels ?? false;
  }

  /** @throws Refused, with the rule. */
  take(event: TraceEvent): void {
    const { node } = event;
    const before = this.#clocks.get(node) ?? 0;
    const t = event.t ?? before;
    must(t >= before, 'Trace', `the clock of ${node} goes back from ${before} to ${t}`);
    this.#clocks.set(node, t);
    const handler = this.#handlers[event.ev];
    must(handler !== undefined, 'Trace', `there is no event '${event.ev}'`);
    handler(node, t, event);
  }

  readonly #handlers: Record<string, (node: string, t: number, event: TraceEvent) => void> = {
    tick: () => {},
    flushed: () => {},
    'channel-open': (node, _t, event) => {
      if (event.incarnation === undefined) return;
      this.#meet(node, text(event.peer), version(event.incarnation));
    },
    'channel-close': () => {},
    'session-drop': () => {},
    'node-start': (node, _t, event) => {
      const incarnation =
        event.incarnation === undefined ? (this.#incarnations.get(node) ?? 0n) + 1n : version(event.incarnation);
      const before = this.#incarnations.get(node);
      must(
        before === undefined || incarnation > before,
        'BarLowerIncarnation',
        `${node} starts anew with incarnation ${incarnation}`,
      );
      this.#incarnations.set(node, incarnation);
      this.#begin(node);
      this.#booted.add(node);
    },
    'agent-start': (node, _t, event) => {
      if (event.incarnation !== undefined) this.#incarnations.set(node, version(event.incarnation));
      // The first agent of a node's life has no earlier one.
      if (!this.#booted.delete(node)) this.#begin(node);
    },
    'agent-stop': (node) => {
      this.#booted.delete(node);
      for (const nonce of this.#requests.keys()) if (nonce.startsWith(`${node}|`)) this.#requests.delete(nonce);
    },
    'node-crash': (node) => {
      for (const where of this.#owners.keys()) if (where.startsWith(`${node}|`)) this.#owners.delete(where);
      for (const where of this.#kernel.keys()) if (where.startsWith(`${node}|`)) this.#kernel.delete(where);
      for (const where of this.#tunnel.keys()) if (where.startsWith(`${node}|`)) this.#tunnel.delete(where);
      for (const where of this.#owes.keys()) if (where.endsWith(`|${node}`)) this.#orphaned.add(where);
    },
    born: (node, _t, event) => {
      const where = key(node, event.ip);
      const before = this.#lastVersion.get(where);
      const now = { incarnation: this.#incarnations.get(node) ?? 1n, generation: version(event.generation) };
      if (event.continues === true) {
        must(
          this.#owners.get(where)?.generation === now.generation,
          'NewerWins',
          `${event.ip} goes on with another generation`,
        );
        return;
      }
      must(!this.#owners.has(where), 'VouchOwnNode', `${event.ip} has an owner on ${node}`);
      must(
        before === undefined || isNewer(now, before),
        'NewerWins',
        `generation ${now.generation} of ${event.ip} is not newer`,
      );
      must(
        !this.#kernel.has(where),
        'StampLocalDelivery',
        `${event.ip} is still another node's in the kernel of ${node}`,
      );
      this.#lastVersion.set(where, now);
      this.#owners.set(where, { ...now, identity: event.identity, open: new Set() });
    },
    open: (node, t, event) => {
      const owner = this.#owner(node, event, 'Fence');
      const peer = text(event.peer);
      const peers = peer === '*' ? this.#peersOf(node, text(event.ip)) : [peer];
      for (const one of peers) this.#mayOpen(node, t, text(event.ip), owner, one);
      owner.open.add(peer);
    },
    close: (node, t, event) => {
      this.#owner(node, event, 'VouchOwnNode');
      this.#owners.delete(key(node, event.ip));
      this.#closedAt.set(key(node, event.ip), t);
    },
    ask: (node, t, event) => {
      const ips = new Set((event.ips as unknown[] | undefined)?.map(text) ?? [text(event.ip)]);
      this.#requests.set(key(node, event.nonce), { peer: text(event.peer), t, ips, leaseMs: 0, granted: new Map() });
    },
    grant: (node, _t, event) => {
      const peer = text(event.peer);
      const request = this.#requests.get(key(peer, event.nonce));
      for (const vouch of event.vouches as { ip: string; identity: unknown; generation: unknown }[]) {
        const owner = this.#owner(node, { ...event, ...vouch }, 'VouchOwnNode');
        must(owner.identity === vouch.identity, 'VouchOwnNode', `${vouch.ip} is not ${String(vouch.identity)}`);
        must(isOpen(owner, peer), 'FenceVouch', `${vouch.ip} is not open to ${peer}`);
        const held = this.#owed(node, vouch.ip, peer);
        if (!held.some((v) => v.generation === owner.generation && v.incarnation === owner.incarnation))
          held.push(owner);
        this.#orphaned.delete(key(node, vouch.ip, peer));
        if (request === undefined || request.peer !== node) continue; // asked by an agent that is gone
        request.leaseMs = Number(event.leaseMs);
        request.granted.set(vouch.ip, owner);
      }
    },
    apply: (node, t, event) => this.#apply(node, t, event),
    delete: (node, _t, event) => void this.#kernel.delete(key(node, event.ip)),
    'tunnel-allow': (node, _t, event) => {
      const entry = this.#kernel.get(key(node, event.ip));
      must(
        entry === undefined || entry.peer === event.peer,
        'MoveDeleteFirst',
        `${text(event.ip)} is ${entry?.peer}'s in the kernel of ${node}`,
      );
      this.#tunnel.set(key(node, event.ip), text(event.peer));
    },
    'tunnel-disallow': (node, _t, event) => void this.#tunnel.delete(key(node, event.ip)),
    withdraw: (node, _t, event) => {
      const incarnation = this.#incarnations.get(node) ?? 1n;
      const entries = (event.entries as { ip: string; generation: unknown }[]).map(({ ip, generation }) => ({
        ip,
        incarnation,
        generation: version(generation),
      }));
      for (const { ip, generation } of entries) {
        const owner = this.#owners.get(key(node, ip));
        must(owner === undefined || owner.generation > generation, 'VouchOwnNode', `${ip} is withdrawn and lives`);
      }
      if (event.version !== undefined) this.#versions.set(key(node, event.peer, event.channel), version(event.version));
      this.#withdraws.set(key(node, event.peer, event.id), { entries, acked: false });
    },
    'withdraw-ack': (node, _t, event) => {
      const host = text(event.peer);
      const said = this.#withdraws.get(key(host, node, event.id));
      must(said !== undefined, 'Withdraw', `${node} acks what was not said`);
      for (const entry of said.entries) {
        const held = this.#kernel.get(key(node, entry.ip));
        must(
          held === undefined || held.peer !== host || isNewer(held, entry),
          'AckAfterDelete',
          `${entry.ip} is in the kernel of ${node}`,
        );
        this.#bury(node, host, entry.ip, entry);
      }
      said.acked = true;
    },
    'withdraw-acked': (node, t, event) => {
      const peer = text(event.peer);
      const said = this.#withdraws.get(key(node, peer, event.id));
      must(said?.acked === true, 'Fence', `${node} takes an ack that ${peer} did not give`);
      for (const entry of said.entries) this.#letGo(node, t, peer, entry.ip, entry);
    },
    reset: (node, _t, event) => {
      const incarnation =
        event.incarnation === undefined ? (this.#incarnations.get(node) ?? 1n) : version(event.incarnation);
      this.#resets.set(key(node, event.peer, event.channel), {
        incarnation,
        keeps: generationsOf(event.keeps),
        kept: undefined,
        acked: false,
        ended: [...this.#lastVersion.keys()].filter((where) => where.startsWith(`${node}|`)),
      });
    },
    'reset-ack': (node, _t, event) => this.#resetAck(node, event),
    'reset-acked': (node, t, event) => {
      const peer = text(event.peer);
      const said = this.#resets.get(key(node, peer, event.channel));
      must(said?.acked === true, 'ResetAssumesAll', `${node} takes a RESET's ack that ${peer} did not give`);
      this.#acked.add(key(node, this.#lives.get(node), peer));
      for (const where of said.ended) {
        const ip = where.slice(node.length + 1);
        for (const held of [...this.#owed(node, ip, peer)]) {
          const isLower = held.incarnation < said.incarnation;
          const isNamed = said.keeps !== undefined && (said.keeps.get(ip) ?? -1n) !== held.generation;
          // What began after it was said is not what it speaks of.
          const last = this.#owners.get(where);
          const isAlive =
            last !== undefined && last.generation === held.generation && last.incarnation === held.incarnation;
          if ((isLower || isNamed) && !isAlive) this.#letGo(node, t, peer, ip, held);
          else if (said.kept !== undefined && said.kept.get(ip) !== held.generation) {
            const entry = this.#kernel.get(key(peer, ip));
            const isHeld = entry?.peer === node && entry.generation === held.generation;
            must(!isHeld, 'ResetDeletes', `${ip} is in the kernel of ${peer}, whose ack does not say so`);
            // Of an owner that lives, nothing under way is meant for anybody else.
            if (isAlive) this.#owed(node, ip, peer).splice(this.#owed(node, ip, peer).indexOf(held), 1);
            else this.#letGo(node, t, peer, ip, held);
          }
        }
      }
    },
    renew: (node, t, event) => {
      this.#renewals.set(key(node, event.nonce), {
        peer: text(event.peer),
        t,
        leaseMs: 0,
        version: version(event.version),
      });
    },
    'renew-granted': (node, _t, event) => {
      const peer = text(event.peer);
      const renewal = this.#renewals.get(key(peer, event.nonce));
      must(this.#isAcked(node, peer), 'RenewalAfterReset', `${node} renews for ${peer}, which has not acked RESET`);
      must(renewal !== undefined, 'VouchNonce', `${node} grants a renewal that nobody asked for`);
      const last = this.#versions.get(key(node, peer, event.channel)) ?? 0n;
      must(
        renewal.version >= last,
        'RenewalNamesVersion',
        `${peer} named version ${renewal.version}, the last withdraw was ${last}`,
      );
      renewal.leaseMs = Number(event.leaseMs);
    },
    // With `ip`: one entry, by a renewal or by a request for it; without: all of the peer's.
    renewed: (node, _t, event) => {
      const nonce = key(node, event.nonce);
      const asked = this.#renewals.get(nonce) ?? this.#requests.get(nonce);
      must(asked !== undefined && asked.leaseMs > 0, 'VouchNonce', `${node} renews without a grant`);
      const end = Number(event.leaseEnd);
      must(end <= asked.t + asked.leaseMs, 'LeaseFromAsking', `the lease ends at ${end}, asked at ${asked.t}`);
      for (const [where, entry] of this.#kernel) {
        const isMeant = event.ip === undefined ? where.startsWith(`${node}|`) : where === key(node, event.ip);
        if (isMeant && entry.peer === asked.peer) entry.leaseEnd = end;
      }
    },
    send: (node, _t, event) => {
      const owner = this.#owners.get(key(node, event.ip));
      must(owner !== undefined, 'StampSource', `${text(event.ip)} has no owner on ${node}`);
      const isStamped = event.generation === undefined || owner.generation === version(event.generation);
      must(
        isStamped,
        'StampSource',
        `generation ${String(event.generation)} of ${text(event.ip)} does not live on ${node}`,
      );
      must(isOpen(owner, text(event.peer)), 'FenceSend', `${text(event.ip)} is not open to ${text(event.peer)}`);
      this.#packets.set(text(event.packet), {
        identity: owner.identity,
        meant: this.#kernel.get(key(node, event.to)),
        from: node,
      });
    },
    take: (node, t, event) => {
      const ip = text(event.ip);
      const entry = this.#kernel.get(key(node, ip));
      must(entry !== undefined, 'NoWorldInside', `nobody vouches for ${ip}`);
      must(t < entry.leaseEnd, 'LeaseEveryPacket', `the lease of ${ip} ended at ${entry.leaseEnd}`);
      must(entry.identity === event.identity, 'P1', `${ip} is ${String(entry.identity)}`);
      must(event.peer === undefined || event.peer === entry.peer, 'TunnelOrigin', `it came from ${text(event.peer)}`);
      const packet = this.#packets.get(text(event.packet));
      if (packet === undefined) return;
      must(packet.identity === event.identity, 'P1', `its sender was ${String(packet.identity)} when it sent it`);
      const receiver = this.#owners.get(key(node, event.to));
      if (event.to === undefined || packet.meant === undefined) return;
      must(
        receiver !== undefined && isOpen(receiver, packet.from),
        'FenceReceive',
        `${text(event.to)} is not open to ${packet.from}`,
      );
      must(
        packet.meant.generation === receiver.generation && packet.meant.incarnation === receiver.incarnation,
        'P2',
        `it was meant for an earlier owner of ${text(event.to)}`,
      );
    },
  };

  #begin(node: string): void {
    this.#lives.set(node, (this.#lives.get(node) ?? 0) + 1);
    if (!this.#incarnations.has(node)) this.#incarnations.set(node, 1n);
  }

  #owner(node: string, event: { readonly [field: string]: unknown }, rule: string): Owner {
    const owner = this.#owners.get(key(node, event.ip));
    must(
      owner !== undefined && owner.generation === version(event.generation),
      rule,
      `generation ${String(event.generation)} of ${String(event.ip)} does not live on ${node}`,
    );
    return owner;
  }

  #owed(host: string, ip: string, peer: string): Version[] {
    const where = key(host, ip, peer);
    const held = this.#owes.get(where) ?? [];
    this.#owes.set(where, held);
    return held;
  }

  #peersOf(host: string, ip: string): string[] {
    const start = `${host}|${ip}|`;
    return [...this.#owes.keys()].filter((where) => where.startsWith(start)).map((where) => where.slice(start.length));
  }

  #isAcked(host: string, peer: string): boolean {
    const life = this.#lives.get(host) ?? 1;
    return life === 1 || this.#acked.has(key(host, life, peer));
  }

  #mayOpen(host: string, t: number, ip: string, owner: Owner, peer: string): void {
    const earlier = this.#owed(host, ip, peer).filter((held) => isNewer(owner, held));
    must(earlier.length === 0, 'Fence', `${peer} may hold generation ${earlier[0]?.generation} of ${ip}`);
    const isKnown = this.#isAcked(host, peer) || this.#acked.has(key(host, this.#lives.get(host), ip, peer));
    must(isKnown, 'ResetAssumesAll', `${host} restarted, and ${peer} has not acked since`);
    const where = key(host, ip);
    const closed = this.#closedAt.get(where);
    must(closed === undefined || t >= closed + this.#drainMs, 'DrainTime', `${ip} closed at ${closed}`);
    const acked = this.#ackedAt.get(key(host, ip, peer));
    must(acked === undefined || t >= acked + this.#drainMs, 'DrainFromAck', `${peer} acked at ${acked}`);
  }

  #letGo(host: string, t: number, peer: string, ip: string, upTo: Version): void {
    const held = this.#owed(host, ip, peer);
    const kept = held.filter((one) => isNewer(one, upTo));
    this.#owes.set(key(host, ip, peer), kept);
    // The second ack of the same says nothing new.
    if (kept.length < held.length) this.#ackedAt.set(key(host, ip, peer), t);
    this.#acked.add(key(host, this.#lives.get(host), ip, peer));
    if (this.#orphaned.delete(key(host, ip, peer))) this.#ackedAt.delete(key(host, ip, peer));
  }

  #bury(receiver: string, host: string, ip: string, upTo: Version): void {
    const before = this.#buried.get(key(receiver, host, ip));
    if (before === undefined || isNewer(upTo, before)) this.#buried.set(key(receiver, host, ip), upTo);
  }

  #meet(receiver: string, host: string, incarnation: bigint): void {
    const highest = this.#seen.get(key(receiver, host)) ?? 0n;
    must(incarnation >= highest, 'BarLowerIncarnation', `${receiver} has met incarnation ${highest} of ${host}`);
    this.#seen.set(key(receiver, host), incarnation);
  }

  #resetAck(node: string, event: TraceEvent): void {
    const host = text(event.peer);
    const said = this.#resets.get(key(host, node, event.channel));
    must(said !== undefined, 'Reset', `${node} acks a RESET that was not said`);
    said.kept = generationsOf(event.kept);
    this.#meet(node, host, said.incarnation);
    for (const [where, entry] of this.#kernel) {
      if (!where.startsWith(`${node}|`) || entry.peer !== host) continue;
      const ip = where.slice(node.length + 1);
      must(
        entry.incarnation >= said.incarnation,
        'ResetDeletes',
        `${ip} of incarnation ${entry.incarnation} is in the kernel of ${node}`,
      );
      const goesOn = said.keeps === undefined || said.keeps.get(ip) === entry.generation;
      must(
        goesOn,
        'ResetNamesLive',
        `${ip} of generation ${entry.generation} is in the kernel of ${node}, and was not named`,
      );
    }
    // Requests die with the channel: nothing that had ended when it was said comes into force any more.
    for (const where of said.ended) {
      const ip = where.slice(host.length + 1);
      for (const held of this.#owed(host, ip, node)) {
        const kept = said.keeps?.get(ip);
        const isEnded = held.incarnation < said.incarnation || (said.keeps !== undefined && kept !== held.generation);
        const owner = this.#owners.get(where);
        if (isEnded && !(owner !== undefined && owner.generation === held.generation)) this.#bury(node, host, ip, held);
      }
    }
    said.acked = true;
  }

  #apply(node: string, t: number, event: TraceEvent): void {
    const ip = text(event.ip);
    const peer = text(event.peer);
    const request = this.#requests.get(key(node, event.nonce));
    must(
      request !== undefined && request.peer === peer && request.ips.has(ip),
      'VouchNonce',
      `${node} has no open request for ${ip} to ${peer}`,
    );
    const granted = request.granted.get(ip);
    const isSaid =
      granted !== undefined && granted.identity === event.identity && granted.generation === version(event.generation);
    must(isSaid, 'VouchOwnNode', `${peer} did not vouch for this`);
    const leaseEnd = Number(event.leaseEnd);
    must(
      leaseEnd <= request.t + request.leaseMs,
      'LeaseFromAsking',
      `the lease ends at ${leaseEnd}, asked at ${request.t}`,
    );
    const buried = this.#buried.get(key(node, peer, ip));
    must(
      buried === undefined || isNewer(granted, buried),
      'TombstoneWithdrawn',
      `generation ${granted.generation} of ${ip} was let go`,
    );
    must(
      granted.incarnation >= (this.#seen.get(key(node, peer)) ?? 0n),
      'BarLowerIncarnation',
      `of incarnation ${granted.incarnation}`,
    );
    must(
      this.#owed(peer, ip, node).some((v) => v.generation === granted.generation),
      'RequestsDieWithChannel',
      `${peer} does not count ${node} among those that hold generation ${granted.generation} of ${ip} any more`,
    );
    const held = this.#kernel.get(key(node, ip));
    if (held !== undefined && held.peer !== peer) {
      must(held.leaseEnd <= t, 'OtherNodesLeaseWins', `${held.peer} has a lease on ${ip} until ${held.leaseEnd}`);
    } else if (held !== undefined)
      must(!isNewer(held, granted), 'NewerWins', `generation ${held.generation} is in force`);
    if (this.#tunnels)
      must(
        this.#tunnel.get(key(node, ip)) === peer,
        'MoveTunnelBeforeVouch',
        `the tunnel does not bind ${ip} to ${peer}`,
      );
    must(!this.#owners.has(key(node, ip)), 'StampLocalDelivery', `${ip} is the node's own`);
    this.#kernel.set(key(node, ip), { ...granted, peer, leaseEnd });
    request.ips.delete(ip);
  }
}
