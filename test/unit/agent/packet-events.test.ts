import { describe, expect, test } from 'vitest';
import { type PacketNames, packetEvent } from '../../../src/agent/packet-events.ts';
import type { DatapathSignal } from '../../../src/model/datapath.ts';
import { type IpAddress, nodeId, securityIdentity } from '../../../src/model/ids.ts';

const names = {
  identities: {
    byIdentity: (id: number) => (id === 256 ? { spiffeId: 'spiffe://example.org/frontend' } : undefined),
  },
  nodes: { byId: (id: number) => (id === 2 ? { name: 'node-b' } : undefined) },
  nodeName: 'node-a',
  ruleOf: ({ rule }: DatapathSignal) => (rule === 3 ? 'a.yaml:7 default/a' : undefined),
} as unknown as PacketNames;

const signal: DatapathSignal = {
  kind: 'drop',
  timeNs: 5n,
  suppressed: 41n,
  direction: 'egress',
  endpoint: 1,
  localAddress: '10.77.1.10' as IpAddress,
  remoteAddress: '10.77.2.10' as IpAddress,
  localIdentity: securityIdentity(256),
  remoteIdentity: securityIdentity(257),
  remoteNode: nodeId(2),
  protocol: 6,
  localPort: 40_000,
  remotePort: 8080,
  authType: 'none',
  rule: 3,
  held: false,
  reason: 'POLICY_DENY_RULE',
  length: 60,
};

describe('what the kernel reports of a packet', () => {
  test('a drop names both sides in the direction of the packet, the rule, and what else the kernel only counted', () => {
    expect(packetEvent(signal, names)).toMatchObject({
      kind: 'packet.dropped',
      reason: 'POLICY_DENY_RULE',
      source: { spiffeId: 'spiffe://example.org/frontend', identity: 256, node: 'node-a', port: 40_000 },
      destination: { identity: 257, node: 'node-b', address: '10.77.2.10', port: 8080 },
      policy: 'a.yaml:7 default/a',
      detail: { protocol: 'tcp', also: 41, direction: 'egress' },
    });
    const incoming = packetEvent({ ...signal, direction: 'ingress' }, names);
    expect(incoming).toMatchObject({ source: { address: '10.77.2.10' }, destination: { address: '10.77.1.10' } });
  });

  test('what only observes is another kind than a drop, and an allowed sample a third', () => {
    expect(packetEvent({ ...signal, kind: 'observed' }, names)?.kind).toBe('packet.observed');
    expect(packetEvent({ ...signal, kind: 'verdict', reason: undefined }, names)?.kind).toBe('packet.allowed');
  });

  test('a miss is none of them, unless its packet found no room to wait', () => {
    expect(packetEvent({ ...signal, kind: 'auth-miss', reason: undefined }, names)).toBeUndefined();
    const full = packetEvent({ ...signal, kind: 'auth-miss', reason: 'HOLD_FULL' }, names);
    expect(full).toMatchObject({ kind: 'packet.dropped', reason: 'HOLD_FULL' });
  });
});
