/** Where nodes are dialed, and which addresses are a node's: what the identity server lists, and what the settings add. */
import type { Clock } from '../base/clock.ts';
import { parseAddress } from '../model/address.ts';
import type { NodeInfo, NodeTable } from '../model/identity.ts';
import type { NodeName } from '../model/ids.ts';

export interface DialAddress {
  readonly host: string;
  readonly port: number;
}

/** Of nodes, by their names: "IP:port". They say where to dial, never who lives there. */
export type StaticAddresses = ReadonlyMap<NodeName, readonly string[]>;

/** The set of nodes' addresses is made anew when it is asked for and older than this. */
const FRESH_NS = 1_000_000_000n;

export class DialAddresses {
  readonly #nodes: NodeTable;
  readonly #added: StaticAddresses;
  readonly #clock: Pick<Clock, 'bootNs'>;
  #hosts: { readonly set: ReadonlySet<string>; readonly madeNs: bigint } | undefined;

  constructor(nodes: NodeTable, added: StaticAddresses, clock: Pick<Clock, 'bootNs'>) {
    this.#nodes = nodes;
    this.#added = added;
    this.#clock = clock;
  }

  /** In the order in which they are dialed: those of the settings first. */
  of(node: Pick<NodeInfo, 'name' | 'peerAddresses'>): DialAddress[] {
    const texts = new Set([...(this.#added.get(node.name) ?? []), ...node.peerAddresses]);
    return [...texts].flatMap((text) => parseDialAddress(text) ?? []);
  }

  /** Is it the address of a listed node? */
  isNode(address: string): boolean {
    const now = this.#clock.bootNs();
    if (this.#hosts === undefined || now - this.#hosts.madeNs > FRESH_NS) {
      const set = new Set(this.#nodes.nodes().flatMap((node) => this.of(node).map(({ host }) => host)));
      this.#hosts = { set, madeNs: now };
    }
    return this.#hosts.set.has(address);
  }
}

/** "IP:port" and "[IPv6]:port" apart; undefined if it is neither. */
export function parseDialAddress(text: string): DialAddress | undefined {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const host = parseAddress(match[1] ?? match[2] ?? '');
  const port = Number(match[3]);
  if (host === undefined || port < 1 || port > 65_535) return undefined;
  // Brackets for IPv6, and only for it.
  if ((match[1] !== undefined) !== host.includes(':')) return undefined;
  return { host, port };
}
