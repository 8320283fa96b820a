/**
 * The typed face of the addon: marshalling only, no policy. Everything that is a system call Node has no word for.
 * All functions but `quiesce` are synchronous, and they throw an Error with `code` (errno name, e.g. 'EPERM'), `errno` (positive) and `syscall`
 * unless said otherwise; -ENOENT on a lookup or delete is an answer, not an error. File descriptors are plain numbers
 * owned by the caller, close-on-exec, and closed with `closeFd`.
 */
import { createRequire } from 'node:module';

export interface MapInfo {
  readonly fd: number;
  /** The kernel's number for it. */
  readonly id: number;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
}

export interface LoadOptions {
  /** Compiled BPF object file. */
  readonly path: string;
  /** Map name to absolute pin path on a bpffs: reused when compatible (else EEXIST/EINVAL thrown), created and pinned otherwise. */
  readonly pins?: Readonly<Record<string, string>>;
  /** Map name to max_entries, overriding the object's. */
  readonly maxEntries?: Readonly<Record<string, number>>;
}

export interface LoadedObject {
  readonly maps: Readonly<Record<string, MapInfo>>;
  /** Program (C function) name to fd. */
  readonly programs: Readonly<Record<string, number>>;
}

export interface TestRunOptions {
  readonly packet: Uint8Array;
  /** Default 1. The kernel returns the mean duration over all repeats. */
  readonly repeat?: number;
  /** struct __sk_buff fields the kernel lets a test set. */
  readonly mark?: number;
  readonly ifindex?: number;
  /** Of a packet that stands for several (GSO): bytes of payload in each, and how many; 0: not counted. */
  readonly gsoSize?: number;
  readonly gsoSegments?: number;
}

export interface TestRunResult {
  readonly retval: number;
  readonly durationNs: number;
  readonly packet: Buffer;
  readonly mark: number;
}

export interface BtfStruct {
  readonly name: string;
  readonly size: number;
  readonly members: readonly { readonly name: string; readonly offset: number; readonly size: number }[];
}

export interface Handle {
  close(): void;
}

export interface Tun extends Handle {
  readonly fd: number;
  readonly name: string;
  readonly ifindex: number;
  /** Write one IP packet, as if it arrived on the device. Returns false on EAGAIN. */
  write(packet: Uint8Array): boolean;
}

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** A place in a hook's chain, first one first. */
export interface ChainEntry {
  readonly programId: number;
  /** 0: attached without a link. */
  readonly linkId: number;
}

export interface LinkInfo {
  readonly id: number;
  readonly programId: number;
  readonly tcx: boolean;
  /** 0: the interface has gone, the link holds nothing any more. */
  readonly ifindex: number;
  readonly direction: TcDirection;
}

export interface ProgramInfo {
  readonly id: number;
  /** Of its instructions, 16 hex digits: equal for the same program loaded twice. */
  readonly tag: string;
  /** At most 15 characters. */
  readonly name: string;
  readonly mapIds: readonly number[];
  /** How many the verifier read before it accepted the program; at a million it gives up. */
  readonly verifiedInstructions: number;
}

export type TcDirection = 'ingress' | 'egress';

export interface Native {
  // --- BPF objects, maps ---
  loadObject(options: LoadOptions): LoadedObject;
  objPin(fd: number, path: string): void;
  objGet(path: string): number;
  mapInfo(fd: number): MapInfo;
  /** Per-CPU maps: all CPUs' values back to back, each rounded up to 8 bytes. */
  mapLookup(fd: number, key: Uint8Array): Buffer | undefined;
  /** flags: 0 any, 1 BPF_NOEXIST, 2 BPF_EXIST. */
  mapUpdate(fd: number, key: Uint8Array, value: Uint8Array, flags?: number): void;
  mapDelete(fd: number, key: Uint8Array): boolean;
  /** `keys`/`values`: count records back to back. */
  mapUpdateBatch(fd: number, keys: Uint8Array, values: Uint8Array, count: number): void;
  /** Missing keys are passed over; returns how many were deleted. */
  mapDeleteBatch(fd: number, keys: Uint8Array, count: number): number;
  /** The whole map, records back to back (per-CPU maps: values of all CPUs, each rounded up to 8 bytes). */
  mapDump(fd: number): { keys: Buffer; values: Buffer; count: number };
  /** Called on the event loop with each record, at most 512 in one turn. What the callback throws is an uncaught exception. */
  ringbufOpen(fd: number, onRecord: (record: Buffer) => void): Handle;
  /** How many records there are. Per-CPU values count once. */
  mapCount(fd: number): number;
  /** Structs of the BTF of an object file (or of the kernel when path is undefined) by name. */
  btfStructs(path: string | undefined, names: readonly string[]): BtfStruct[];
  progTestRun(fd: number, options: TestRunOptions): TestRunResult;
  /** Resolves when every run of a BPF program that began before the call has ended (an RCU grace period). Needs CAP_BPF. */
  quiesce(): Promise<void>;

  // --- attachment ---
  /** True if the kernel has tcx links (6.6 or later): tried, not read from a version number. */
  tcxSupported(): boolean;
  /** At the head of the chain. Returns the link's fd: pin it, or the attachment ends with the process. */
  tcxAttach(progFd: number, ifindex: number, direction: TcDirection): number;
  /** Replace the program of a link in place (bpf link update). */
  linkUpdate(linkFd: number, progFd: number): void;
  /** Takes the program off now, although others hold the link. False if nothing was attached any more. */
  linkDetach(linkFd: number): boolean;
  /** The programs of a tcx hook in their order. */
  tcxQuery(ifindex: number, direction: TcDirection): ChainEntry[];
  linkInfo(linkFd: number): LinkInfo;
  progInfo(progFd: number): ProgramInfo;
  /** An fd to close; undefined: there is no such program (any more). */
  progById(programId: number): number | undefined;
  /** Adds the clsact qdisc if missing, attaches as direct-action filter with this handle and priority, replacing it. */
  clsactAttach(progFd: number, ifindex: number, direction: TcDirection, priority: number, handle: number): void;
  /** False if nothing was there. */
  clsactDetach(ifindex: number, direction: TcDirection, priority: number, handle: number): boolean;

  // --- devices, sockets, namespaces ---
  /** IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL device; packets read are delivered on the event loop. It ends with `close`. */
  tunOpen(name: string, onPacket: (packet: Buffer) => void): Tun;
  ifIndex(name: string): number;
  ifName(ifindex: number): string | undefined;
  /** One netlink request and its whole answer (until NLMSG_DONE, the ACK, or a single non-multi message): raw messages
   *  back to back, headers included. A negative NLMSG_ERROR throws with its errno and the kernel's words; ETIMEDOUT after
   *  5 s without an answer; EAGAIN when the table changed while it was dumped: ask again. */
  netlinkRequest(protocol: number, request: Uint8Array): Buffer;
  /** Joins groups (bit mask of the first 32) and delivers each datagram of the kernel's. When messages were lost it delivers
   *  a bare NLMSG_OVERRUN (type 4) header: dump the table again. */
  netlinkSubscribe(protocol: number, groups: number, onMessage: (message: Buffer) => void): Handle;
  /** SO_PEERCRED. @throws Error ENOTCONN when no process is behind the socket. */
  peerCredentials(fd: number): PeerCredentials;
  /** SO_PEERPIDFD (Linux 6.5): a pidfd of the process that connected. @throws Error ENOPROTOOPT on an older kernel; ESRCH or
   *  EINVAL when it has been reaped. */
  peerPidfd(fd: number): number;
  /** pidfd_open(2). */
  pidfdOpen(pid: number): number;
  /** True while the process behind the pidfd has not ended. */
  pidfdAlive(fd: number): boolean;
  /** Enter a network namespace, run fn synchronously, come back (also when fn throws). */
  withNetns<T>(path: string, fn: () => T): T;
  /** flock(2), exclusive, of an open file or directory, until its fd is closed. False while somebody else holds it. */
  tryLock(fd: number): boolean;
  /** CLOCK_BOOTTIME in ns, what bpf_ktime_get_boot_ns() reads. */
  bootTimeNs(): bigint;
  /** prctl(PR_SET_PDEATHSIG). */
  setParentDeathSignal(signal: number): void;
  closeFd(fd: number): void;
}

const require = createRequire(import.meta.url);
let loaded: Native | undefined;

/** The addon, loaded on first use. @throws Error that says how to build it. */
export function native(): Native {
  if (loaded === undefined) {
    try {
      loaded = require('./build/Release/countersign.node') as Native;
    } catch (cause) {
      throw new Error('the native addon is not built: run ./dev build', { cause });
    }
  }
  return loaded;
}
