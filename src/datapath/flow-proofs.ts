/** Proofs for one flow each (authentication with `scope: connection`). Whose they are stands in the value, as the kernel compares it. */
import { addressBytes, addressFromBytes } from '../model/address.ts';
import type { AuthKey, AuthTable, FlowAuthEntry, FlowTuple } from '../model/datapath.ts';
import { nodeId, securityIdentity } from '../model/ids.ts';
import type { ConfigWriter } from './config.ts';
import { AUTH_REFUSED, AUTH_TAKEN } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

type FlowProofs = Pick<AuthTable, 'putFlow' | 'refuseFlow' | 'deleteFlows' | 'listFlows'>;

export function createFlowProofs(maps: DatapathMaps, config: ConfigWriter): FlowProofs {
  const write = (key: AuthKey, flow: FlowTuple, expiresNs: bigint, epoch: number, flags: number) =>
    maps.cs_flow_auth.put(keyOf(flow), {
      expires_ns: expiresNs,
      epoch,
      flags,
      local: key.local,
      remote: key.remote,
      remote_node: key.remoteNode,
    });
  return {
    putFlow: (entry, flow) => write(entry, flow, entry.expiresAtNs, entry.epoch, 0),
    // A flow that runs goes on until its own end: what is refused is the next one.
    refuseFlow: (key, flow, untilNs) => write(key, flow, untilNs, config.current.epoch, AUTH_REFUSED),
    deleteFlows(keys) {
      const wanted = new Set(keys.map(({ local, remote, remoteNode }) => `${local} ${remote} ${remoteNode}`));
      const gone = maps.cs_flow_auth
        .entries()
        .filter(([, { local, remote, remote_node }]) => wanted.has(`${local} ${remote} ${remote_node}`));
      const deleted = maps.cs_flow_auth.deleteBatch(gone.map(([key]) => key));
      // After the deletion, and also when nothing was there: an entry may have made room while its flow lives on.
      config.bumpRevision();
      return deleted;
    },
    listFlows: () => readFlowProofs(maps),
  };
}

function readFlowProofs(maps: DatapathMaps): FlowAuthEntry[] {
  return maps.cs_flow_auth.entries().flatMap(([key, value]) => {
    if ((value.flags & AUTH_REFUSED) !== 0) return [];
    return [
      {
        local: securityIdentity(value.local),
        remote: securityIdentity(value.remote),
        remoteNode: nodeId(value.remote_node),
        authType: 'spiffe-connection' as const,
        expiresAtNs: value.expires_ns,
        epoch: value.epoch,
        taken: (value.flags & AUTH_TAKEN) !== 0,
        flow: {
          endpoint: key.endpoint,
          localAddress: addressFromBytes(key.local),
          remoteAddress: addressFromBytes(key.remote),
          protocol: key.proto,
          localPort: swapped(key.lport),
          remotePort: swapped(key.rport),
        },
      },
    ];
  });
}

function keyOf(flow: FlowTuple) {
  return {
    local: addressBytes(flow.localAddress),
    remote: addressBytes(flow.remoteAddress),
    lport: swapped(flow.localPort),
    rport: swapped(flow.remotePort),
    endpoint: flow.endpoint,
    proto: flow.protocol,
  };
}

/** Ports lie in network order. */
const swapped = (port: number): number => ((port & 0xff) << 8) | (port >> 8);
