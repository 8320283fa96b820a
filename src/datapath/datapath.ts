/**
 * The datapath of one node, wired up: what the agent says to the kernel goes through here. Everything pinned outlives
 * it (proofs, addresses, endpoints, policy, flows, counters, attachments): a stopped agent fails closed for what is new and
 * keeps what is proven until it expires, and the next one goes on from the same maps. Only what waited in the hold
 * queue is lost with a process.
 */
import { join } from 'node:path';
import { type Handle, type LoadedObject, native } from '../../native/index.ts';
import type { Clock } from '../base/clock.ts';
import { CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { addressBytes } from '../model/address.ts';
import type {
  AddressTable,
  AuthTable,
  DatapathSignal,
  DropCount,
  EndpointAttachment,
  FenceTable,
  HoldQueue,
  PairDropCount,
  PolicyDelta,
  PolicyTables,
} from '../model/datapath.ts';
import { type IpAddress, type NodeId, securityIdentity } from '../model/ids.ts';
import { createAddressTable } from './address-table.ts';
import { type Attacher, type AttachMode, type AttachSetting, createAttacher, programNames } from './attach.ts';
import { createAuthTable } from './auth-table.ts';
import { ConfigWriter } from './config.ts';
import { DropCounters, readObserved, readPairDrops } from './counters.ts';
import { createEndpointTable, readEndpoints } from './endpoints.ts';
import { HoldBudget } from './hold-budget.ts';
import { openHoldDevice } from './hold-device.ts';
import { PacketHold } from './hold-queue.ts';
import {
  CFG_ALLOW_UNBOUND,
  CFG_HOST_EGRESS,
  CFG_HOST_INGRESS,
  CFG_OBSERVE,
  CFG_STOPPED,
  EXEMPT_DHCP,
  EXEMPT_HOST_PROBES,
  IP_LOCAL,
} from './layout.ts';
import { destroyPinned } from './lifecycle.ts';
import { lockNode } from './lock.ts';
import { type DatapathMaps, openMaps, pinnedMaps, programMaps } from './maps.ts';
import { makePins, otherVersions, type Pins, pinOver } from './pins.ts';
import { PolicyTable } from './policy-table.ts';
import type { PrefixEntry } from './prefix-table.ts';
import { createQuiesce } from './quiesce.ts';
import { decodeSignal } from './signals.ts';
import { noStep, type OnStep } from './steps.ts';

const ROUND_MS = 50;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

export interface DatapathFlags {
  /** authentication.allowUnboundPath */
  readonly allowUnboundPath: boolean;
  /** enforcement: observe */
  readonly observe: boolean;
  /** Break-glass: everything passes, what would have been dropped is counted as observed, nothing is held. Default false. */
  readonly stopped?: boolean;
  /** What passes without a policy. Default: nothing. */
  readonly exempt?: Exemptions;
}

export interface Exemptions {
  /** A workload's DHCP and DHCPv6 client and its own host. */
  readonly dhcp: boolean;
  /** What the own host opens to its endpoints. */
  readonly hostProbes: boolean;
}

export interface HostExemptions {
  /** TCP, opened to these: the identity server, and where nodes are dialed besides the peer port of those it lists. */
  readonly servers: readonly { readonly address: IpAddress; readonly port: number }[];
  /** UDP ports of this node's: the tunnel. */
  readonly udpPorts: readonly number[];
}

export interface DatapathOptions extends DatapathFlags {
  /** Node name; part of the pin path. */
  readonly node: string;
  /** Mount point of a bpffs, usually /sys/fs/bpf. */
  readonly bpffs: string;
  /** Compiled kernel programs (build/bpf/datapath.bpf.o). */
  readonly objectPath: string;
  readonly holdDevice: string;
  readonly holdLimitPerIdentity: number;
  readonly holdLimitTotal: number;
  readonly holdDeadlineMs: number;
  readonly signalIntervalMs: number;
  readonly peerPort: number;
  /** What no policy of the node's own may cut off, besides peerPort. Default: nothing. */
  readonly hostExempt?: HostExemptions;
  /** What other nodes vouch for goes only through the tunnel, even with allowUnboundPath. Default false. */
  readonly encrypt?: boolean;
  /** One of so many allowed verdicts becomes a signal. Default 0: none. */
  readonly verdictSample?: number;
  readonly attach: AttachSetting;
  /** max_entries by map name. A size other than the pinned map's is refused. */
  readonly mapSizes?: Readonly<Record<string, number>>;
  readonly clock: Clock;
  onSignal(signal: DatapathSignal): void;
  readonly log: Logger;
  /** Called between any two effects on the kernel, for tests that end the process there. */
  readonly onStep?: OnStep;
}

export interface Datapath {
  readonly auth: AuthTable;
  readonly addresses: AddressTable;
  readonly hold: HoldQueue;
  /** Each peer's own, see FenceTable. */
  readonly fences: FenceTable;
  readonly attachMode: AttachMode;
  setPrefixes(prefixes: readonly PrefixEntry[]): void;
  /** Replaces the policy as a whole. @throws Error E2BIG, ENOSPC: too many entries; the policy in force stays. */
  setPolicy(tables: PolicyTables): void;
  /** Changes the policy in force in place. @throws Error E2BIG: too many entries; the policy in force stays. */
  updatePolicy(delta: PolicyDelta): void;
  /** Writes the maps, attaches the programs with the endpoint closed, then opens it if it is to be open. */
  putEndpoint(attachment: EndpointAttachment): void;
  /** Forgets it. Its programs stay as long as its interface does, and drop everything. */
  removeEndpoint(endpoint: number): void;
  listEndpoints(): EndpointAttachment[];
  attachUnderlay(ifindex: number): void;
  attachTunnel(ifindex: number): void;
  detach(ifindex: number): void;
  /**
   * Resolves when every program run that began before the call has ended, usually in 10 to 50 ms. Calls that come together
   * share one wait. @throws Error errno of the kernel: then nothing may be concluded
   */
  quiesce(): Promise<void>;
  /** When a flow between this node and the node was last made or kept alive, CLOCK_BOOTTIME in ns, to 2 s. undefined: not in
   *  memory, which holds the nodes used last. */
  lastUse(node: NodeId): bigint | undefined;
  /** Every flow is judged anew. Call it after what it is for. */
  bumpRevision(): void;
  /** Makes every proof so far a miss. Returns the new epoch. */
  raiseEpoch(): number;
  drops(): DropCount[];
  /** What would have been dropped and passed. */
  observed(): DropCount[];
  /** The pairs of identities that dropped last, most packets first. */
  pairDrops(): PairDropCount[];
  /** Packets that were ever put into the hold queue. */
  held(): { readonly taken: bigint };
  /** What is not named stays as it is. */
  setFlags(change: Partial<DatapathFlags>): void;
  /** One of so many allowed verdicts becomes a signal; 0: none. */
  setVerdictSample(oneOf: number): void;
  /** Ends this process's part; all that is pinned stays and goes on enforcing. */
  close(): void;
  /** Uninstalls: detaches everywhere, removes the pins. */
  destroy(): void;
}

/** @throws CountersignError unsupported (no bpffs, no BTF), bad-input (map sizes), already-exists (a second agent). */
export function openDatapath(options: DatapathOptions): Datapath {
  const lock = lockNode(options.bpffs, options.node);
  const closers: (() => void)[] = [() => lock.release()];
  try {
    const pins = makePins(options.bpffs, options.node);
    const object = load(options, pins);
    closers.push(() => closeFds(object));
    return start(options, pins, object, closers);
  } catch (error) {
    for (const close of closers.reverse()) close();
    throw error;
  }
}

function start(options: DatapathOptions, pins: Pins, object: LoadedObject, closers: (() => void)[]): Datapath {
  const onStep = options.onStep ?? noStep;
  const maps = openMaps(object.maps, onStep);
  const config = new ConfigWriter(maps);
  const counters = new DropCounters();
  const policy = new PolicyTable(maps, config);
  writeHostExempt(maps, options.hostExempt);
  closers.push(() => policy.close());

  // Until the new hold device is there a miss drops; the old one went with its process.
  config.set({
    hold_ifindex: 0,
    hold_limit_identity: options.holdLimitPerIdentity,
    hold_limit_total: options.holdLimitTotal,
    signal_interval_ns: BigInt(options.signalIntervalMs) * 1_000_000n,
    peer_port: options.peerPort,
    // A policy of the node's own stays in force until the next one is written.
    flags: flagBits(options) | hostBits(config),
    exempt: exemptBits(options),
    verdict_sample: options.verdictSample ?? 0,
  });
  config.bumpRevision();
  const attacher = createAttacher(pins, options.attach, object.programs, onStep);
  pinPrograms(pins, object, onStep);

  const hold = startHold(options, maps, config, counters, attacher, closers);
  // After the hold device: an agent of an earlier build, which has no lock, is known by it.
  attacher.takeOver(otherVersions(options.bpffs, options.node).map((other) => other.pins));
  const ring = openSignals(options, object);
  closers.push(() => ring.close());
  const endpoints = createEndpointTable(maps, config, attacher, (local) => hold.dropAddress(local));

  let flags: DatapathFlags = options;
  let open = true;
  const close = () => {
    if (!open) return;
    open = false;
    for (const step of closers.reverse()) step();
  };
  return {
    auth: createAuthTable(maps, config),
    addresses: createAddressTable(maps, config, options.encrypt ?? false),
    hold,
    fences: endpoints.fences,
    attachMode: attacher.mode,
    setPrefixes: (prefixes) => policy.setRanges(prefixes),
    setPolicy: (tables) => policy.set(tables),
    updatePolicy: (delta) => policy.update(delta),
    putEndpoint: (attachment) => endpoints.put(attachment),
    removeEndpoint: (endpoint) => endpoints.remove(endpoint),
    listEndpoints: () => readEndpoints(maps),
    attachUnderlay(ifindex) {
      attacher.attach('to_netdev', ifindex);
      attacher.attach('from_netdev', ifindex);
    },
    attachTunnel(ifindex) {
      attacher.attach('to_tunnel', ifindex);
      attacher.attach('from_tunnel', ifindex);
    },
    detach: (ifindex) => attacher.detachInterface(ifindex),
    quiesce: createQuiesce(() => native().quiesce()),
    lastUse: (node) => maps.cs_uses.get({ n: node })?.n,
    bumpRevision: () => config.bumpRevision(),
    raiseEpoch() {
      config.set({ epoch: config.current.epoch + 1 });
      config.bumpRevision();
      return config.current.epoch;
    },
    drops: () => counters.merged(maps),
    observed: () => readObserved(maps),
    pairDrops: () => readPairDrops(maps),
    held: () => ({ taken: maps.cs_hold_taken.get({ n: 0 })?.n ?? 0n }),
    setFlags(change) {
      flags = { ...flags, ...change };
      config.set({ flags: flagBits(flags) | hostBits(config), exempt: exemptBits(flags) });
      config.bumpRevision();
    },
    setVerdictSample: (oneOf) => config.set({ verdict_sample: oneOf }),
    close,
    destroy() {
      close();
      destroyPinned(options.bpffs, options.node);
    },
  };
}

function startHold(
  options: DatapathOptions,
  maps: DatapathMaps,
  config: ConfigWriter,
  counters: DropCounters,
  attacher: Attacher,
  closers: (() => void)[],
): PacketHold {
  const queueLength = options.holdLimitTotal;
  const tun = openHoldDevice(options.holdDevice, queueLength, (packet) => hold.accept(packet));
  closers.push(() => tun.close());
  // How long each was nobody knows.
  const budget = new HoldBudget(maps, (packets) => counters.add('HOLD_LOST', 'egress', 0, packets));
  // While the event loop stands still, packets lie in the device unseen. Between two of these timers it has read what there was, so
  // what is read after the later one came after the earlier.
  let earlierNs = options.clock.bootNs();
  let laterNs = earlierNs;
  const rounds = setInterval(() => {
    earlierNs = laterNs;
    laterNs = options.clock.bootNs();
  }, ROUND_MS);
  rounds.unref();
  closers.push(() => clearInterval(rounds));
  const hold: PacketHold = new PacketHold({
    heldSinceNs: () => earlierNs,
    limitPerIdentity: options.holdLimitPerIdentity,
    limitTotal: options.holdLimitTotal,
    deadlineMs: options.holdDeadlineMs,
    clock: options.clock,
    identityOf: (local) => localIdentity(maps, local),
    write: (packet) => tun.write(packet),
    left: (identity, packets) => budget.left(identity, packets),
    dropped: (reason, bytes) => counters.add(reason, 'egress', bytes),
  });
  closers.push(() => hold.close());
  const writeOff = setInterval(() => budget.writeOffLost(hold.isEmpty()), options.holdDeadlineMs * 2);
  writeOff.unref();
  closers.push(() => clearInterval(writeOff));
  // The program before the kernel knows the device: what comes back is judged from the first packet on.
  attacher.attach('from_hold', tun.ifindex);
  config.set({ hold_ifindex: tun.ifindex });
  closers.push(() => config.set({ hold_ifindex: 0 }));
  return hold;
}

function openSignals(options: DatapathOptions, object: LoadedObject): Handle {
  const events = object.maps.cs_events;
  if (events === undefined) throw new Error('the kernel programs have no map cs_events');
  return native().ringbufOpen(events.fd, (record) => {
    const signal = decodeSignal(record);
    if (signal === undefined) options.log.warn({ bytes: record.length }, 'an event of the kernel was not understood');
    else options.onSignal(signal);
  });
}

function load(options: DatapathOptions, pins: Pins): LoadedObject {
  const names = [...Object.keys(pinnedMaps), ...programMaps];
  try {
    return native().loadObject({
      path: options.objectPath,
      pins: Object.fromEntries(names.map((name) => [name, join(pins.maps, name)])),
      ...(options.mapSizes === undefined ? {} : { maxEntries: options.mapSizes }),
    });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'EINVAL' && message.includes('parameter mismatch')) {
      throw new CountersignError(
        'bad-input',
        `a map pinned in ${pins.maps} has another size or type than configured; go back to the earlier size, ` +
          `or uninstall the datapath of this node first: ${message}`,
        { cause: error },
      );
    }
    throw error;
  }
}

/** So that tools can find them, and their numbers, by name. */
function pinPrograms(pins: Pins, object: LoadedObject, onStep: OnStep): void {
  for (const name of programNames) {
    const fd = object.programs[name];
    if (fd === undefined) continue;
    pinOver(fd, join(pins.progs, name), onStep);
  }
}

function localIdentity(maps: DatapathMaps, local: IpAddress) {
  const row = maps.cs_ipcache.get({ b: addressBytes(local) });
  return row === undefined || (row.flags & IP_LOCAL) === 0 ? undefined : securityIdentity(row.identity);
}

function flagBits(flags: DatapathFlags): number {
  return (
    (flags.allowUnboundPath ? CFG_ALLOW_UNBOUND : 0) |
    (flags.observe ? CFG_OBSERVE : 0) |
    (flags.stopped === true ? CFG_STOPPED : 0)
  );
}

function exemptBits({ exempt }: DatapathFlags): number {
  return (exempt?.dhcp === true ? EXEMPT_DHCP : 0) | (exempt?.hostProbes === true ? EXEMPT_HOST_PROBES : 0);
}

const hostBits = (config: ConfigWriter) => config.current.flags & (CFG_HOST_EGRESS | CFG_HOST_INGRESS);

/** New ones first: nothing that stays exempt is cut off in between. */
function writeHostExempt(
  maps: DatapathMaps,
  { servers, udpPorts }: HostExemptions = { servers: [], udpPorts: [] },
): void {
  const keys = [
    ...servers.map(({ address, port }) => ({ addr: addressBytes(address), port, proto: PROTOCOL_TCP })),
    ...udpPorts.map((port) => ({ addr: Buffer.alloc(16), port, proto: PROTOCOL_UDP })),
  ];
  const nameOf = (key: (typeof keys)[number]) => `${key.addr.toString('hex')} ${key.port} ${key.proto}`;
  const wanted = new Set(keys.map(nameOf));
  for (const key of keys) maps.cs_host_exempt.put(key, { n: 1 });
  const stale = maps.cs_host_exempt.entries().flatMap(([key]) => (wanted.has(nameOf(key)) ? [] : [key]));
  if (stale.length > 0) maps.cs_host_exempt.deleteBatch(stale);
}

function closeFds(object: LoadedObject): void {
  for (const { fd } of Object.values(object.maps)) native().closeFd(fd);
  for (const fd of Object.values(object.programs)) native().closeFd(fd);
}
