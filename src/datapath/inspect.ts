/** What of a node's datapath is loaded, attached and pinned, read from the kernel alone: with an agent, without one, after a crash. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type MapInfo, native, type ProgramInfo, type TcDirection } from '../../native/index.ts';
import { NET } from '../base/registry/net.ts';
import type { EndpointAttachment, Fence } from '../model/datapath.ts';
import {
  type AttachMode,
  type Attachment,
  directions,
  type ProgramName,
  parsePinName,
  programNames,
} from './attach.ts';
import { listFilters } from './clsact.ts';
import { readEndpoints } from './endpoints.ts';
import { readFences } from './fence-table.ts';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE, CFG_STOPPED } from './layout.ts';
import { isLocked } from './lock.ts';
import { isPinned, withPinnedMaps } from './pinned.ts';
import { listPins, otherVersions, type Pins, pinPaths } from './pins.ts';
import { noStep } from './steps.ts';

/** What the node's settings say of its interfaces. */
export interface NodeSettings {
  readonly bpffs: string;
  readonly node: string;
  readonly underlay: string;
  /** undefined: encryption is off. */
  readonly tunnelDevice: string | undefined;
  readonly holdDevice: string;
  readonly endpoints: readonly { readonly name: string; readonly interface: string }[];
}

export type Role = 'workload' | 'underlay' | 'tunnel' | 'hold';

/** A program that belongs on an interface. */
export interface Place {
  readonly role: Role;
  /** "endpoint frontend", "the underlay", … */
  readonly of: string;
  readonly interface: string;
  readonly ifindex: number;
  readonly program: ProgramName;
  readonly direction: TcDirection;
}

/** One program on a hook, in the order in which the kernel asks them: those by tcx before those by clsact. */
export interface ChainProgram {
  readonly mode: AttachMode;
  /** Program number; 0: a filter that is no BPF program. */
  readonly id: number;
  readonly name: string;
  readonly tag: string;
  readonly mapIds: readonly number[];
  /** tcx only; 0: without a link. */
  readonly linkId: number;
  /** clsact only. */
  readonly priority: number;
  readonly handle: number;
}

export interface PinnedLink {
  readonly pin: string;
  readonly attachment: Attachment | undefined;
  /** undefined: clsact, where the pin is a program. */
  readonly link: { readonly id: number; readonly ifindex: number } | undefined;
  readonly programId: number;
}

export interface MapState {
  readonly name: string;
  readonly id: number;
  readonly type: string;
  readonly keySize: number;
  readonly valueSize: number;
  /** undefined: it has no count (ring buffer), or all are there (array). */
  readonly entries: number | undefined;
  readonly maxEntries: number;
}

export interface Inspection {
  readonly settings: NodeSettings;
  readonly agentRunning: boolean;
  /** Of this build's layout. */
  readonly pinned: boolean;
  /** Layout versions of other builds that have pins of this node. */
  readonly otherVersions: readonly number[];
  readonly state:
    | {
        readonly revision: bigint;
        readonly epoch: number;
        readonly stopped: boolean;
        readonly observe: boolean;
        readonly allowUnboundPath: boolean;
        readonly holdIfindex: number;
        readonly endpoints: readonly EndpointAttachment[];
        readonly fences: readonly Fence[];
      }
    | undefined;
  readonly places: readonly Place[];
  /** Interfaces of the settings that are not there. */
  readonly absent: readonly { readonly role: Role; readonly of: string; readonly interface: string }[];
  /** Programs on each hook of an interface with a place of ours: by "ifindex direction". */
  readonly hooks: ReadonlyMap<string, readonly ChainProgram[]>;
  readonly links: readonly PinnedLink[];
  /** progs/: by name. */
  readonly programs: ReadonlyMap<string, ProgramInfo>;
  readonly maps: readonly MapState[];
}

const mapTypes: Readonly<Record<number, string>> = {
  1: 'hash',
  2: 'array',
  5: 'percpu_hash',
  6: 'percpu_array',
  9: 'lru_hash',
  10: 'lru_percpu_hash',
  11: 'lpm_trie',
  27: 'ringbuf',
};
const counted = new Set(['hash', 'percpu_hash', 'lru_hash', 'lru_percpu_hash', 'lpm_trie']);

/** Must run in the node's network namespace. */
export function inspectNode(settings: NodeSettings): Inspection {
  const { bpffs, node } = settings;
  const pins = pinPaths(bpffs, node);
  const pinned = isPinned(bpffs, node);
  const state = pinned ? readState(bpffs, node) : undefined;
  const { places, absent } = placesOf(settings, state?.endpoints ?? []);
  const hooks = new Map<string, readonly ChainProgram[]>();
  for (const { ifindex } of places) {
    for (const direction of ['ingress', 'egress'] as const) {
      const name = hookName(ifindex, direction);
      if (!hooks.has(name)) hooks.set(name, readHook(ifindex, direction));
    }
  }
  return {
    settings,
    agentRunning: isLocked(bpffs, node),
    pinned,
    otherVersions: otherVersions(bpffs, node).map(({ version }) => version),
    state,
    places,
    absent,
    hooks,
    links: readLinks(pins),
    programs: new Map(
      programNames.flatMap((name) => {
        const path = join(pins.progs, name);
        return existsSync(path) ? [[name, withPin(path, (fd) => native().progInfo(fd))] as const] : [];
      }),
    ),
    maps: listPins(pins.maps).map((name) => withPin(join(pins.maps, name), (fd) => mapState(name, fd))),
  };
}

export function hookName(ifindex: number, direction: TcDirection): string {
  return `${ifindex} ${direction}`;
}

/** Tags of the programs as this build's object file has them: loaded once, into maps of one entry, attached nowhere. */
export function buildTags(objectPath: string): ReadonlyMap<string, string> {
  const addon = native();
  const object = addon.loadObject({ path: objectPath, maxEntries: smallMaps });
  try {
    return new Map(Object.entries(object.programs).map(([name, fd]) => [name, addon.progInfo(fd).tag]));
  } finally {
    for (const { fd } of Object.values(object.maps)) addon.closeFd(fd);
    for (const fd of Object.values(object.programs)) addon.closeFd(fd);
  }
}

/** Those that would take memory for nothing. */
const smallMaps = { cs_flows: 64, cs_waiting: 64, cs_signals: 64 };

function readState(bpffs: string, node: string): Inspection['state'] {
  return withPinnedMaps(bpffs, node, noStep, (maps) => {
    const config = maps.cs_config.get({ n: 0 })!;
    return {
      revision: config.revision,
      epoch: config.epoch,
      stopped: (config.flags & CFG_STOPPED) !== 0,
      observe: (config.flags & CFG_OBSERVE) !== 0,
      allowUnboundPath: (config.flags & CFG_ALLOW_UNBOUND) !== 0,
      holdIfindex: config.hold_ifindex,
      endpoints: readEndpoints(maps),
      fences: readFences(maps),
    };
  });
}

const programsOf = {
  workload: ['to_workload', 'from_workload'],
  underlay: ['from_netdev', 'to_netdev'],
  tunnel: ['from_tunnel', 'to_tunnel'],
  hold: ['from_hold'],
} as const satisfies Record<Role, readonly ProgramName[]>;

function placesOf(settings: NodeSettings, endpoints: readonly EndpointAttachment[]) {
  const places: Place[] = [];
  const absent: { role: Role; of: string; interface: string }[] = [];
  const seen = new Set<number>();
  const addIndex = (role: Role, of: string, name: string, ifindex: number) => {
    seen.add(ifindex);
    for (const program of programsOf[role]) {
      places.push({ role, of, interface: name, ifindex, program, direction: directions[program] });
    }
  };
  const add = (role: Role, of: string, name: string) => {
    const ifindex = ifindexOf(name);
    if (ifindex === undefined) absent.push({ role, of, interface: name });
    else addIndex(role, of, name, ifindex);
  };
  for (const endpoint of settings.endpoints) add('workload', `endpoint ${endpoint.name}`, endpoint.interface);
  add('underlay', 'the underlay', settings.underlay);
  if (settings.tunnelDevice !== undefined) add('tunnel', 'the tunnel', settings.tunnelDevice);
  add('hold', 'the hold queue', settings.holdDevice);
  for (const { endpoint, ifindex } of endpoints) {
    const name = native().ifName(ifindex);
    if (name !== undefined && !seen.has(ifindex)) addIndex('workload', `endpoint number ${endpoint}`, name, ifindex);
  }
  return { places, absent };
}

function readHook(ifindex: number, direction: TcDirection): ChainProgram[] {
  const addon = native();
  const known = { priority: 0, handle: 0, linkId: 0 };
  let byTcx: ChainProgram[] = [];
  try {
    byTcx = addon.tcxQuery(ifindex, direction).map(({ programId, linkId }) => ({
      ...known,
      ...describe(programId),
      mode: 'tcx' as const,
      linkId,
    }));
  } catch (error) {
    // A kernel without tcx, or the interface went meanwhile.
    if (!['EINVAL', 'ENODEV'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
  const byClsact = listFilters(ifindex, direction).map((filter) => ({
    ...known,
    ...(filter.programId === undefined
      ? { id: 0, name: filter.name ?? filter.kind, tag: '', mapIds: [] }
      : describe(filter.programId)),
    mode: 'clsact' as const,
    priority: filter.priority,
    handle: filter.handle,
  }));
  return [...byTcx, ...byClsact];
}

function describe(id: number): Pick<ChainProgram, 'id' | 'name' | 'tag' | 'mapIds'> {
  const addon = native();
  const fd = addon.progById(id);
  if (fd === undefined) return { id, name: 'gone', tag: '', mapIds: [] };
  try {
    const { name, tag, mapIds } = addon.progInfo(fd);
    return { id, name, tag, mapIds };
  } finally {
    addon.closeFd(fd);
  }
}

/** Where the filters of ours stand; those of others may have the same priority with another handle. */
export function isOurFilter(program: ChainProgram): boolean {
  return program.mode === 'clsact' && program.priority === NET.tcPriority && program.handle === NET.tcHandle;
}

function readLinks(pins: Pins): PinnedLink[] {
  return listPins(pins.links)
    .filter((pin) => !pin.startsWith('qdisc-'))
    .map((pin) =>
      withPin(join(pins.links, pin), (fd) => {
        const attachment = parsePinName(pin);
        if (/^(new-)?tcx-/.test(pin)) {
          const { id, ifindex, programId } = native().linkInfo(fd);
          return { pin, attachment, link: { id, ifindex }, programId };
        }
        return { pin, attachment, link: undefined, programId: native().progInfo(fd).id };
      }),
    );
}

function mapState(name: string, fd: number): MapState {
  const info: MapInfo = native().mapInfo(fd);
  const type = mapTypes[info.type] ?? String(info.type);
  return {
    name,
    id: info.id,
    type,
    keySize: info.keySize,
    valueSize: info.valueSize,
    entries: counted.has(type) ? native().mapCount(fd) : undefined,
    maxEntries: info.maxEntries,
  };
}

function withPin<T>(path: string, use: (fd: number) => T): T {
  const fd = native().objGet(path);
  try {
    return use(fd);
  } finally {
    native().closeFd(fd);
  }
}

function ifindexOf(name: string): number | undefined {
  try {
    return native().ifIndex(name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENODEV') return undefined;
    throw error;
  }
}
