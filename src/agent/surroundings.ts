/** What the kernel must know of the cluster besides workloads: which prefixes are theirs, which addresses are nodes'. */
import { parseDialAddress } from '../channel/dial-address.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { NodeTable } from '../model/identity.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type IpAddress, LOCAL_NODE } from '../model/ids.ts';
import type { AgentConfig } from './config.ts';

export class Surroundings {
  readonly #datapath: Datapath;
  readonly #nodes: NodeTable;
  readonly #config: AgentConfig;
  #reserved = new Set<IpAddress>();

  constructor(datapath: Datapath, server: { readonly nodes: NodeTable }, config: AgentConfig) {
    this.#datapath = datapath;
    this.#nodes = server.nodes;
    this.#config = config;
    for (const entry of datapath.addresses.list()) if (entry.reserved) this.#reserved.add(entry.address);
  }

  apply(): void {
    // Inside these an address that nobody vouches for is nobody's, never the world's.
    this.#datapath.setPrefixes(
      this.#nodes
        .nodes()
        .flatMap((node) => node.prefixes.map((prefix) => ({ prefix, identity: IDENTITY_WORLD, cluster: true }))),
    );
    const own = new Set(hostsOf(this.#config.peer.listen));
    const others = new Set(
      this.#nodes
        .nodes()
        .flatMap((node) => hostsOf(node.peerAddresses))
        .filter((a) => !own.has(a)),
    );
    const wanted = new Set([...own, ...others]);
    for (const address of this.#reserved) if (!wanted.has(address)) this.#datapath.addresses.delete(address);
    for (const address of wanted) {
      this.#datapath.addresses.put({
        address,
        identity: own.has(address) ? IDENTITY_HOST : IDENTITY_REMOTE_NODE,
        node: LOCAL_NODE,
        incarnation: 0n,
        generation: 0n,
        leaseEndNs: undefined,
        endpoint: 0,
        reserved: true,
      });
    }
    this.#reserved = wanted;
  }
}

function hostsOf(addresses: readonly string[]): IpAddress[] {
  return addresses.flatMap((text) => parseDialAddress(text)?.host ?? []) as IpAddress[];
}
