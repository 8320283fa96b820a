/** Drops that the kernel reports, as audit events with names instead of numbers. */
import type { AuditParty, AuditSink } from '../model/audit-event.ts';
import type { DatapathSignal } from '../model/datapath.ts';
import type { IdentityTable, NodeTable } from '../model/identity.ts';

const protocolNames: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmpv6', 132: 'sctp' };

export function auditDrop(
  signal: DatapathSignal,
  to: {
    audit: AuditSink;
    identities: IdentityTable;
    nodes: NodeTable;
    nodeName: string;
    describeRule: (rule: number) => string | undefined;
  },
): void {
  if (signal.reason === undefined) return;
  const party = (identity: number, address: string, port: number, node: string | undefined): AuditParty => {
    const spiffeId = to.identities.byIdentity(identity as never)?.spiffeId;
    return {
      ...(spiffeId === undefined ? {} : { spiffeId }),
      identity,
      address,
      port,
      ...(node === undefined ? {} : { node }),
    };
  };
  const local = party(signal.localIdentity, signal.localAddress, signal.localPort, to.nodeName);
  const remote = party(
    signal.remoteIdentity,
    signal.remoteAddress,
    signal.remotePort,
    to.nodes.byId(signal.remoteNode)?.name,
  );
  const [source, destination] = signal.direction === 'egress' ? [local, remote] : [remote, local];
  const policy = to.describeRule(signal.rule);
  to.audit.emit({
    kind: 'packet.dropped',
    reason: signal.reason,
    source,
    destination,
    ...(policy === undefined ? {} : { policy }),
    detail: {
      direction: signal.direction,
      protocol: protocolNames[signal.protocol] ?? String(signal.protocol),
      bytes: signal.length,
      // Packets of the same kind since the last event of this key, which the kernel only counted.
      also_dropped: Number(signal.suppressed),
      kernel_boot_ns: String(signal.timeNs),
    },
  });
}
