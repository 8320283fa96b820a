/** What the kernel reports of packets, with names instead of numbers: for the audit log and for those who watch. */
import type { AuditEvent, AuditParty } from '../model/audit-event.ts';
import type { DatapathSignal } from '../model/datapath.ts';
import type { IdentityTable, NodeTable } from '../model/identity.ts';
import type { NodeName } from '../model/ids.ts';
import { protocolName } from './protocols.ts';

export interface PacketNames {
  readonly identities: Pick<IdentityTable, 'byIdentity'>;
  readonly nodes: Pick<NodeTable, 'byId'>;
  /** This node. */
  readonly nodeName: NodeName;
  /** "file:line policy" of the rule that decided; undefined: none did. */
  ruleOf(signal: DatapathSignal): string | undefined;
}

/** An allowed packet is no matter for the audit log: only those who asked for samples see it. */
export type PacketEvent = Omit<AuditEvent, 'kind'> & {
  readonly kind: 'packet.dropped' | 'packet.observed' | 'packet.allowed';
};

/** undefined: the signal tells of no verdict, but of something that is not known yet. */
export function packetEvent(signal: DatapathSignal, names: PacketNames): PacketEvent | undefined {
  const kind = kindOf(signal);
  if (kind === undefined) return undefined;
  const party = (identity: number, address: string, port: number, node: string | undefined): AuditParty => {
    const spiffeId = names.identities.byIdentity(identity as never)?.spiffeId;
    return {
      ...(spiffeId === undefined ? {} : { spiffeId }),
      identity,
      address,
      port,
      ...(node === undefined ? {} : { node }),
    };
  };
  const local = party(signal.localIdentity, signal.localAddress, signal.localPort, names.nodeName);
  const remoteNode = names.nodes.byId(signal.remoteNode)?.name;
  const remote = party(signal.remoteIdentity, signal.remoteAddress, signal.remotePort, remoteNode);
  const [source, destination] = signal.direction === 'egress' ? [local, remote] : [remote, local];
  const policy = names.ruleOf(signal);
  return {
    kind,
    ...(signal.reason === undefined ? {} : { reason: signal.reason }),
    source,
    destination,
    ...(policy === undefined ? {} : { policy }),
    detail: {
      direction: signal.direction,
      protocol: protocolName(signal.protocol),
      auth_type: signal.authType,
      bytes: signal.length,
      // Packets of the same kind since the last event of this key, which the kernel only counted.
      also: Number(signal.suppressed),
      kernel_boot_ns: String(signal.timeNs),
    },
  };
}

function kindOf(signal: DatapathSignal): PacketEvent['kind'] | undefined {
  const kind: string = signal.kind;
  if (kind === 'verdict') return 'packet.allowed';
  // Of a miss whose packet found no room to wait the kernel says why it dropped.
  if (signal.reason === undefined) return undefined;
  return kind === 'observed' ? 'packet.observed' : 'packet.dropped';
}
