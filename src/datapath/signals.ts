/** The kernel's events, from struct cs_event to DatapathSignal. */
import { dropReasonName } from '../base/registry/drop-reasons.gen.ts';
import { addressFromBytes } from '../model/address.ts';
import type { DatapathSignal } from '../model/datapath.ts';
import { nodeId, securityIdentity } from '../model/ids.ts';
import { authTypeOf } from './auth-table.ts';
import { EVENT_KINDS, eventStruct, INGRESS } from './layout.ts';

/** undefined for a record this build does not understand. */
export function decodeSignal(record: Buffer): DatapathSignal | undefined {
  if (record.length !== eventStruct.size) return undefined;
  const event = eventStruct.decode(record);
  const kind = EVENT_KINDS[event.kind as keyof typeof EVENT_KINDS];
  const authType = authTypeOf(event.auth_type);
  if (kind === undefined || authType === undefined) return undefined;
  return {
    kind,
    timeNs: event.time_ns,
    suppressed: event.suppressed,
    direction: event.direction === INGRESS ? 'ingress' : 'egress',
    endpoint: event.endpoint,
    localAddress: addressFromBytes(event.local),
    remoteAddress: addressFromBytes(event.remote),
    localIdentity: securityIdentity(event.local_identity),
    remoteIdentity: securityIdentity(event.remote_identity),
    remoteNode: nodeId(event.remote_node),
    protocol: event.proto,
    localPort: event.lport,
    remotePort: event.rport,
    authType,
    rule: event.rule,
    held: event.held !== 0,
    reason: event.reason === 0 ? undefined : (dropReasonName(event.reason) ?? `UNKNOWN_${event.reason}`),
    length: event.length,
  };
}
