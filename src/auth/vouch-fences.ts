/**
 * Rule 5, Fence: an endpoint is shut to each peer that may believe an earlier owner of its address, in the kernel, both ways, until that
 * peer has let go. Then: DrainFromAck (what the peer sent to the earlier owner is on its way until its ack), the tunnel's session
 * with the peer ends (DropSessionBeforeOpen, QueueBeforeOpen: what was delayed or queued dies with it), the fence opens.
 * A dead peer delays traffic with itself only (FencePerPeer). Time alone opens none (FenceNotByTime).
 */
import type { Clock } from '../base/clock.ts';
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Timers } from '../base/timers.ts';
import type { FenceTable } from '../model/datapath.ts';
import type { NodeId } from '../model/ids.ts';
import type { TunnelBinding } from './ports.ts';
import { laterOf, msOfNs, nsOfMs } from './units.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface PeerFencesOptions {
  readonly kernel: FenceTable;
  readonly tunnel: Pick<TunnelBinding, 'endSession'>;
  quiesce(): Promise<void>;
  readonly drainMs: number;
  /** Open now in the kernel. */
  opened(endpoint: number, node: NodeId): void;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly trace: VouchTrace;
}

const RETRY_MS = 1_000;

export class PeerFences {
  readonly #options: PeerFencesOptions;
  /** By endpoint and node: since when the peer is known to have let go; undefined: it has not said so. */
  readonly #shut = new Map<number, Map<NodeId, bigint | undefined>>();
  /** When the last ending of the session with a node began that came to its end. */
  readonly #endedNs = new Map<NodeId, bigint>();
  readonly #releasing = new Set<NodeId>();

  /** What the kernel's table holds from before an agent's restart is what is still owed. */
  constructor(options: PeerFencesOptions) {
    this.#options = options;
    for (const { endpoint, node } of options.kernel.list()) this.#of(endpoint).set(node, undefined);
  }

  /** In the kernel when it returns: call it before the endpoint opens. */
  close(endpoint: number, nodes: readonly NodeId[]): void {
    if (nodes.length === 0) return;
    this.#options.kernel.close(endpoint, nodes);
    const shut = this.#of(endpoint);
    for (const node of nodes) shut.set(node, undefined);
  }

  isShut(endpoint: number, node: NodeId): boolean {
    return this.#shut.get(endpoint)?.has(node) === true;
  }

  nodesOf(endpoint: number): NodeId[] {
    return [...(this.#shut.get(endpoint)?.keys() ?? [])];
  }

  /** The peer believes no earlier owner of the endpoint's addresses, as it just said. Opens when that is safe. */
  letGo(endpoint: number, node: NodeId): void {
    const shut = this.#shut.get(endpoint);
    if (shut === undefined || !shut.has(node) || shut.get(node) !== undefined) return;
    shut.set(node, this.#options.clock.bootNs());
    void this.#release(node);
  }

  /** The endpoint is out of the kernel's tables, its fences with it. */
  forget(endpoint: number): void {
    this.#shut.delete(endpoint);
  }

  /** Nothing that the node vouched for is in the kernel any more, and nothing will be before it has let go of everything. */
  forgetNode(node: NodeId): void {
    this.#endedNs.delete(node);
    for (const [endpoint, shut] of this.#shut) {
      if (!shut.delete(node)) continue;
      if (shut.size === 0) this.#shut.delete(endpoint);
      this.#options.kernel.open(endpoint, [node]);
    }
  }

  /** Did the session with the node end after then, and the time that packets drain in pass? */
  endedSince(node: NodeId, sinceNs: bigint): boolean {
    const { clock, drainMs } = this.#options;
    return (this.#endedNs.get(node) ?? -1n) > sinceNs && sinceNs + nsOfMs(drainMs) <= clock.bootNs();
  }

  /** Ends the sessions with these nodes that did not end since: nothing that was sent, or waited, before then lives on. */
  async endSessions(nodes: readonly NodeId[], sinceNs: bigint): Promise<void> {
    const due = nodes.filter((node) => (this.#endedNs.get(node) ?? -1n) < sinceNs);
    if (due.length === 0) return;
    const { tunnel, clock, quiesce, trace } = this.#options;
    const startNs = clock.bootNs();
    await Promise.all(due.map((node) => tunnel.endSession(node)));
    // QueueBeforeOpen: what the tunnel handed on before it ended is still in the kernel's receive queue.
    await quiesce();
    for (const node of due) {
      this.#endedNs.set(node, startNs);
      trace?.({ ev: 'session-drop', peer: node });
    }
  }

  #of(endpoint: number): Map<NodeId, bigint | undefined> {
    let shut = this.#shut.get(endpoint);
    if (shut === undefined) {
      shut = new Map();
      this.#shut.set(endpoint, shut);
    }
    return shut;
  }

  /** One at a time for each node: endpoints that become free together share one ending of the session. */
  async #release(node: NodeId): Promise<void> {
    if (this.#releasing.has(node)) return;
    this.#releasing.add(node);
    let againMs: number | undefined;
    try {
      againMs = await this.#openDue(node);
    } catch (thrown) {
      this.#options.log.error(
        { err: asError(thrown), node },
        'a fence stays shut: its tunnel session could not be ended',
      );
      againMs = RETRY_MS;
    }
    this.#releasing.delete(node);
    if (againMs !== undefined) this.#options.timers.set(againMs, () => void this.#release(node));
  }

  /** Opens what may open. Returns when to look again, ms; undefined: nothing waits for time. */
  async #openDue(node: NodeId): Promise<number | undefined> {
    const { clock, drainMs, kernel, opened } = this.#options;
    for (;;) {
      const waiting = [...this.#shut].flatMap(([endpoint, shut]) => {
        const sinceNs = shut.get(node);
        return sinceNs === undefined
          ? []
          : [{ endpoint, shut, sinceNs, leftNs: sinceNs + nsOfMs(drainMs) - clock.bootNs() }];
      });
      if (waiting.length === 0) return undefined;
      const due = waiting.filter(({ leftNs }) => leftNs <= 0n);
      if (due.length === 0) return Math.ceil(Math.min(...waiting.map(({ leftNs }) => msOfNs(leftNs))));
      const lastNs = due.map(({ sinceNs }) => sinceNs).reduce(laterOf);
      await this.endSessions([node], lastNs + 1n);
      for (const { endpoint, shut, sinceNs } of due) {
        if (this.#shut.get(endpoint) !== shut || shut.get(node) !== sinceNs) continue;
        kernel.open(endpoint, [node]);
        shut.delete(node);
        if (shut.size === 0) this.#shut.delete(endpoint);
        opened(endpoint, node);
      }
    }
  }
}
