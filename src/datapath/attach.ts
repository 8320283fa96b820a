/**
 * Programs onto interfaces: tcx links where the kernel has them, clsact filters where not. Each attachment leaves a pin,
 * so that it outlives the agent, is replaced in place by the next one, and can be found by an uninstall.
 *
 * Ours stand first on their hook and pass on what they allow (TC_ACT_UNSPEC), so that nobody's verdict keeps a packet from
 * them and everybody else still has his say, in his order. Programs of others are left alone.
 */
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { native, type TcDirection } from '../../native/index.ts';
import { NET } from '../base/registry/net.ts';
import { deleteClsact, hasClsact, listFilters } from './clsact.ts';
import { listPins, NEW, type Pins, pinOver, removePins, unpin } from './pins.ts';
import { noStep, type OnStep } from './steps.ts';

export type AttachMode = 'tcx' | 'clsact';
export type AttachSetting = 'auto' | AttachMode;

/** Program (C function name) to the side of the interface it stands on. Those that close a workload come first. */
export const directions = {
  to_workload: 'egress',
  from_workload: 'ingress',
  from_hold: 'ingress',
  from_tunnel: 'ingress',
  to_tunnel: 'egress',
  from_netdev: 'ingress',
  to_netdev: 'egress',
} as const satisfies Record<string, TcDirection>;

export type ProgramName = keyof typeof directions;
export const programNames = Object.keys(directions) as ProgramName[];

export interface Attachment {
  readonly mode: AttachMode;
  readonly program: ProgramName;
  readonly ifindex: number;
}

export interface Attacher {
  readonly mode: AttachMode;
  /** Attaches, or replaces what an earlier agent attached: at no moment is the interface without a program. */
  attach(program: ProgramName, ifindex: number): void;
  detachInterface(ifindex: number): void;
  /** Unpins what stood on an interface that has gone. */
  forget(ifindex: number): void;
  /** The same for all interfaces that have gone. */
  sweep(): void;
  /**
   * Puts this build's programs where an earlier agent's stand, those of other layouts too, and ends theirs. Programs of another
   * layout have maps of their own that nobody writes any more: from here on their interfaces are closed until this agent
   * has put their endpoints.
   */
  takeOver(others: readonly Pins[]): void;
}

export function chooseMode(setting: AttachSetting): AttachMode {
  if (setting !== 'auto') return setting;
  return native().tcxSupported() ? 'tcx' : 'clsact';
}

/** @param programs program fds by C function name. */
export function createAttacher(
  pins: Pins,
  setting: AttachSetting,
  programs: Readonly<Record<string, number>>,
  onStep: OnStep = noStep,
): Attacher {
  const addon = native();
  const mode = chooseMode(setting);

  const attachTcx = (program: ProgramName, ifindex: number, fd: number) => {
    const path = pinPath(pins, { mode: 'tcx', program, ifindex });
    if (updateInPlace(path, { mode: 'tcx', program, ifindex }, fd)) {
      onStep(`swapped ${program} on ${ifindex}`);
      return;
    }
    // Also when there is one that lost its first place: until it is unpinned both are asked.
    const link = addon.tcxAttach(fd, ifindex, directions[program]);
    try {
      onStep(`attached ${program} to ${ifindex}`);
      pinOver(link, path, onStep);
    } finally {
      addon.closeFd(link);
    }
  };
  const attachClsact = (program: ProgramName, ifindex: number, fd: number) => {
    // The filter and the qdisc stay by themselves; the pins are the record that they are ours, and come first.
    if (!hasClsact(ifindex)) pinOver(fd, qdiscPath(pins, ifindex), onStep);
    pinOver(fd, pinPath(pins, { mode: 'clsact', program, ifindex }), onStep);
    addon.clsactAttach(fd, ifindex, directions[program], NET.tcPriority, NET.tcHandle);
    onStep(`attached ${program} to ${ifindex}`);
  };
  const attach = (program: ProgramName, ifindex: number) => {
    const fd = programs[program];
    if (fd === undefined) throw new Error(`the kernel programs have no ${program}`);
    if (mode === 'tcx') attachTcx(program, ifindex, fd);
    else attachClsact(program, ifindex, fd);
    detach(pins, { mode: mode === 'tcx' ? 'clsact' : 'tcx', program, ifindex }, onStep);
  };
  const attachIfThere = ({ program, ifindex }: Attachment) => {
    if (addon.ifName(ifindex) === undefined) return;
    try {
      attach(program, ifindex);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENODEV') throw error; // it went meanwhile
    }
  };
  const sweep = () => {
    for (const attachment of listAttachments(pins)) if (isGone(pins, attachment)) forgetOne(attachment);
  };
  const forgetOne = (attachment: Attachment) => {
    unpin(pinPath(pins, attachment), onStep);
    unpin(qdiscPath(pins, attachment.ifindex), onStep);
  };

  return {
    mode,
    attach,
    detachInterface(ifindex) {
      for (const attachment of listAttachments(pins)) {
        if (attachment.ifindex === ifindex) detach(pins, attachment, onStep);
      }
    },
    forget(ifindex) {
      for (const program of programNames) {
        for (const each of ['tcx', 'clsact'] as const) {
          const attachment = { mode: each, program, ifindex };
          if (listsPin(pins, attachment) && isGone(pins, attachment)) forgetOne(attachment);
        }
      }
    },
    sweep,
    takeOver(others) {
      sweep();
      const own = listAttachments(pins);
      const theirs = others.flatMap((other) => listAttachments(other));
      for (const attachment of inOrder([...own, ...theirs])) attachIfThere(attachment);
      // Second links of processes that died while they replaced the first.
      for (const name of listPins(pins.links).filter((n) => n.startsWith(NEW))) {
        unpin(join(pins.links, name), onStep);
      }
      for (const other of others) {
        if (mode === 'clsact') inheritQdiscs(other, pins, programs, onStep);
        detachAll(other, onStep, { keepFilters: mode === 'clsact' });
        removePins(other, onStep);
        onStep(`removed ${other.root}`);
      }
    },
  };
}

/**
 * Everything off. Traffic is free from the first program on, so the caller has let everything pass by one write before
 * (CFG_STOPPED): else one direction would be open and the other not, if this process died in between.
 */
export function detachAll(pins: Pins, onStep: OnStep = noStep, options: { keepFilters?: boolean } = {}): void {
  for (const name of listPins(pins.links).filter((n) => n.startsWith(`${NEW}tcx-`))) {
    endLink(join(pins.links, name), onStep);
  }
  for (const attachment of listAttachments(pins)) {
    // A filter of this node that has already been replaced by ours: the same priority and handle.
    if (attachment.mode === 'clsact' && options.keepFilters === true) unpin(pinPath(pins, attachment), onStep);
    else detach(pins, attachment, onStep);
  }
}

function detach(pins: Pins, attachment: Attachment, onStep: OnStep): void {
  const { mode, program, ifindex } = attachment;
  if (!listsPin(pins, attachment)) return;
  const path = pinPath(pins, attachment);
  if (mode === 'tcx') {
    endLink(path, onStep);
  } else {
    native().clsactDetach(ifindex, directions[program], NET.tcPriority, NET.tcHandle);
    onStep(`detached ${program} from ${ifindex}`);
    unpin(path, onStep);
  }
  if (mode === 'clsact') removeQdisc(pins, ifindex, onStep);
}

/** At once. Unpinning alone would take the program off some time later. */
function endLink(path: string, onStep: OnStep): void {
  const link = native().objGet(path);
  try {
    native().linkDetach(link);
  } finally {
    native().closeFd(link);
  }
  onStep(`ended ${basename(path)}`);
  unpin(path, onStep);
}

/** The qdisc goes with our last filter, if it was ours and nobody else has put a filter there. */
function removeQdisc(pins: Pins, ifindex: number, onStep: OnStep): void {
  const path = qdiscPath(pins, ifindex);
  if (!existsSync(path)) return;
  if (listAttachments(pins).some((a) => a.mode === 'clsact' && a.ifindex === ifindex)) return;
  if (listFilters(ifindex, 'ingress').length + listFilters(ifindex, 'egress').length === 0) {
    deleteClsact(ifindex);
    onStep(`removed the qdisc of ${ifindex}`);
  }
  unpin(path, onStep);
}

function inheritQdiscs(from: Pins, to: Pins, programs: Readonly<Record<string, number>>, onStep: OnStep): void {
  for (const name of listPins(from.links)) {
    if (/^qdisc-\d+$/.test(name)) pinOver(programs.from_workload!, join(to.links, name), onStep);
  }
}

/** False when there is no link to update: none is pinned, its interface has gone, or others came before it. */
function updateInPlace(path: string, attachment: Attachment, programFd: number): boolean {
  const addon = native();
  const link = openPin(path);
  if (link === undefined) return false;
  try {
    const { id, ifindex, programId } = addon.linkInfo(link);
    if (ifindex !== attachment.ifindex) return false;
    const [first] = addon.tcxQuery(ifindex, directions[attachment.program]);
    // The hook takes a program once: one that this process attached cannot be put before itself.
    if (first?.linkId !== id && programId !== addon.progInfo(programFd).id) return false;
    addon.linkUpdate(link, programFd);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOLINK') return false;
    throw error;
  } finally {
    addon.closeFd(link);
  }
}

/** Of a link its own word: the name of an interface could be missing because this is another network namespace. */
function isGone(pins: Pins, attachment: Attachment): boolean {
  const { mode, ifindex } = attachment;
  if (native().ifName(ifindex) !== undefined) return false;
  if (mode === 'clsact') return true;
  const link = openPin(pinPath(pins, attachment));
  if (link === undefined) return true;
  try {
    return native().linkInfo(link).ifindex === 0;
  } finally {
    native().closeFd(link);
  }
}

function openPin(path: string): number | undefined {
  try {
    return native().objGet(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

export function pinPath(pins: Pins, attachment: Attachment): string {
  return join(pins.links, pinName(attachment));
}

const pinName = ({ mode, program, ifindex }: Attachment) => `${mode}-${program}-${ifindex}`;
const qdiscName = (ifindex: number) => `qdisc-${ifindex}`;
const qdiscPath = (pins: Pins, ifindex: number) => join(pins.links, qdiscName(ifindex));
const listsPin = (pins: Pins, attachment: Attachment) => existsSync(pinPath(pins, attachment));

function inOrder(attachments: readonly Attachment[]): Attachment[] {
  return [...attachments].sort((a, b) => programNames.indexOf(a.program) - programNames.indexOf(b.program));
}

export function listAttachments(pins: Pins): Attachment[] {
  return listPins(pins.links).flatMap((name) => parsePinName(name) ?? []);
}

/** undefined: not the pin of an attachment. */
export function parsePinName(name: string): Attachment | undefined {
  const match = /^(tcx|clsact)-([a-z_]+)-(\d+)$/.exec(name);
  if (match === null || !Object.hasOwn(directions, match[2]!)) return undefined;
  return { mode: match[1] as AttachMode, program: match[2] as ProgramName, ifindex: Number(match[3]) };
}
