/** What the kernel must know of the cluster besides workloads: which prefixes are theirs, which addresses are nodes'. */
import { networkInterfaces } from 'node:os';
import { parseDialAddress } from '../channel/dial-address.ts';
import type { Datapath } from '../datapath/datapath.ts';
import { parseAddress } from '../model/address.ts';
import type { NodeTable } from '../model/identity.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type IpAddress, LOCAL_NODE } from '../model/ids.ts';
import type { AgentConfig } from './config.ts';

export class Surroundings {
  readonly #datapath: Datapath;
  readonly #nodes: NodeTable;
  readonly #config: AgentConfig;
  /** This host's, by the configuration and by its interfaces. */
  #own: ReadonlySet<IpAddress> | undefined;
  #reserved = new Set<IpAddress>();

  constructor(datapath: Datapath, server: { readonly nodes: NodeTable }, config: AgentConfig) {
    this.#datapath = datapath;
    this.#nodes = server.nodes;
    this.#config = config;
    for (const entry of datapath.addresses.list()) if (entry.reserved) this.#reserved.add(entry.address);
  }

  /** Interfaces get and lose addresses without telling the agent. */
  reconcile(): void {
    if (this.#own === undefined) return;
    const now = this.#hostAddresses();
    if (now.size !== this.#own.size || [...now].some((address) => !this.#own!.has(address))) this.apply();
  }

  apply(): void {
    const encrypt = this.#config.encryption.enabled;
    // Inside these an address that nobody vouches for is nobody's, never the world's.
    this.#datapath.setPrefixes(
      this.#nodes
        .nodes()
        .flatMap((node) =>
          node.prefixes.map((prefix) => ({ prefix, identity: IDENTITY_WORLD, cluster: true, encrypt })),
        ),
    );
    const own = this.#hostAddresses();
    this.#own = own;
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

  /**
   * Link-local IPv6 addresses are left out: the same may be a router's on the underlay, and what comes from there with an
   * address of this host is dropped.
   */
  #hostAddresses(): ReadonlySet<IpAddress> {
    const endpoints = new Set(this.#config.endpoints.flatMap(({ addresses }) => addresses));
    const onInterfaces = Object.values(networkInterfaces()).flatMap((list) =>
      (list ?? []).flatMap(({ address, internal }) => {
        const parsed = internal || address.startsWith('fe80:') ? undefined : parseAddress(address);
        return parsed === undefined || endpoints.has(parsed) ? [] : [parsed];
      }),
    );
    return new Set([...hostsOf(this.#config.peer.listen), ...onInterfaces]);
  }
}

function hostsOf(addresses: readonly string[]): IpAddress[] {
  return addresses.flatMap((text) => parseDialAddress(text)?.host ?? []) as IpAddress[];
}
