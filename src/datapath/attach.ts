/**
 * Programs onto interfaces: tcx links where the kernel has them, clsact filters where not. Each attachment leaves a pin,
 * so that it outlives the agent, is replaced in place by the next one, and can be found by an uninstall.
 */
import { join } from 'node:path';
import { native, type TcDirection } from '../../native/index.ts';
import { NET } from '../base/registry/net.ts';
import { listPins, type Pins, unpin } from './pins.ts';

export type AttachMode = 'tcx' | 'clsact';
export type AttachSetting = 'auto' | AttachMode;

/** Program (C function name) to the side of the interface it stands on. */
const directions = {
  from_workload: 'ingress',
  to_workload: 'egress',
  from_hold: 'ingress',
  from_tunnel: 'ingress',
  to_tunnel: 'egress',
  from_netdev: 'ingress',
  to_netdev: 'egress',
} as const satisfies Record<string, TcDirection>;

export type ProgramName = keyof typeof directions;
export const programNames = Object.keys(directions) as ProgramName[];

interface Attachment {
  readonly mode: AttachMode;
  readonly program: ProgramName;
  readonly ifindex: number;
}

export interface Attacher {
  readonly mode: AttachMode;
  /** Attaches, or replaces what an earlier agent attached: at no moment is the interface without a program. */
  attach(program: ProgramName, ifindex: number): void;
  detachInterface(ifindex: number): void;
  /** Forgets attachments to interfaces that no longer exist. */
  sweep(): void;
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
): Attacher {
  const addon = native();
  const mode = chooseMode(setting);

  const attachTcx = (program: ProgramName, ifindex: number, fd: number) => {
    const path = pinPath(pins, { mode: 'tcx', program, ifindex });
    if (updatePinnedLink(path, fd)) return;
    const link = addon.tcxAttach(fd, ifindex, directions[program]);
    try {
      unpin(path); // only now: what was there, if it still is, enforced until the new one did
      addon.objPin(link, path);
    } finally {
      addon.closeFd(link);
    }
  };
  const attachClsact = (program: ProgramName, ifindex: number, fd: number) => {
    const path = pinPath(pins, { mode: 'clsact', program, ifindex });
    addon.clsactAttach(fd, ifindex, directions[program], NET.tcPriority, NET.tcHandle);
    // The filter holds the program by itself; the pin is the record that it is there.
    unpin(path);
    addon.objPin(fd, path);
  };

  return {
    mode,
    attach(program, ifindex) {
      const fd = programs[program];
      if (fd === undefined) throw new Error(`the kernel programs have no ${program}`);
      if (mode === 'tcx') attachTcx(program, ifindex, fd);
      else attachClsact(program, ifindex, fd);
      detach(pins, { mode: mode === 'tcx' ? 'clsact' : 'tcx', program, ifindex });
    },
    detachInterface(ifindex) {
      for (const attachment of listAttachments(pins)) {
        if (attachment.ifindex === ifindex) detach(pins, attachment);
      }
    },
    sweep() {
      for (const attachment of listAttachments(pins)) {
        if (addon.ifName(attachment.ifindex) === undefined) unpin(pinPath(pins, attachment));
      }
    },
  };
}

/** Everything off, for an uninstall that may have no agent. */
export function detachAll(pins: Pins): void {
  for (const attachment of listAttachments(pins)) detach(pins, attachment);
}

function detach(pins: Pins, attachment: Attachment): void {
  const pinned = unpin(pinPath(pins, attachment)); // takes a tcx link away: the pin was its only holder
  if (pinned && attachment.mode === 'clsact') {
    native().clsactDetach(attachment.ifindex, directions[attachment.program], NET.tcPriority, NET.tcHandle);
  }
}

/** False when there is no pinned link, or only one whose interface has gone. */
function updatePinnedLink(path: string, programFd: number): boolean {
  const addon = native();
  let link: number;
  try {
    link = addon.objGet(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
  try {
    addon.linkUpdate(link, programFd);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOLINK') return false;
    throw error;
  } finally {
    addon.closeFd(link);
  }
}

function pinPath(pins: Pins, { mode, program, ifindex }: Attachment): string {
  return join(pins.links, `${mode}-${program}-${ifindex}`);
}

function listAttachments(pins: Pins): Attachment[] {
  return listPins(pins.links).flatMap((name) => {
    const match = /^(tcx|clsact)-([a-z_]+)-(\d+)$/.exec(name);
    if (match === null || !(match[2]! in directions)) return [];
    return [{ mode: match[1] as AttachMode, program: match[2] as ProgramName, ifindex: Number(match[3]) }];
  });
}
