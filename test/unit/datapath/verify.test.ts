/** What `datapath verify` says of what it read: the parts that need no kernel. */
import { describe, expect, test } from 'vitest';
import type { Inspection } from '../../../src/datapath/inspect.ts';
import { verifyNode } from '../../../src/datapath/verify.ts';
import type { EndpointAttachment, Fence } from '../../../src/model/datapath.ts';
import { nodeId, securityIdentity } from '../../../src/model/ids.ts';

const endpoint = (n: number): EndpointAttachment => ({
  endpoint: n,
  identity: securityIdentity(300),
  generation: 1n,
  ifindex: 50 + n,
  mac: undefined,
  addresses: [],
  open: true,
});

const seen = (endpoints: readonly EndpointAttachment[], fences: readonly Fence[]): Inspection => ({
  settings: {
    bpffs: '/sys/fs/bpf',
    node: 'n1',
    underlay: 'eth0',
    tunnelDevice: undefined,
    holdDevice: 'h',
    endpoints: [],
  },
  agentRunning: true,
  pinned: true,
  otherVersions: [],
  state: {
    revision: 1n,
    epoch: 1,
    stopped: false,
    observe: false,
    allowUnboundPath: false,
    holdIfindex: 9,
    endpoints,
    fences,
  },
  places: [],
  absent: [],
  hooks: new Map(),
  links: [],
  programs: new Map(),
  maps: [],
});

describe('fences towards nodes', () => {
  const notes = (inspection: Inspection) => verifyNode(inspection, new Map()).notes;

  test('an endpoint that may not meet some nodes yet is noted, with the nodes', () => {
    const fences = [7, 8].map((node) => ({ endpoint: 1, node: nodeId(node) }));
    expect(notes(seen([endpoint(1), endpoint(2)], fences))).toMatchObject([
      { code: 'fenced', text: expect.stringContaining('endpoint number 1 and node 7, 8 may not meet yet') },
    ]);
  });

  test('without fences there is nothing to note', () => {
    expect(notes(seen([endpoint(1)], []))).toEqual([]);
  });
});
