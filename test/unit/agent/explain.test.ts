/** `explain` on real managers: the answer is what the next packet will find, and names the link of the chain that is missing. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { explainPair } from '../../../src/agent/explain.ts';
import { type Parts, peers } from '../../../src/agent/views.ts';
import { explanationText } from '../../../src/cli/commands/explain.ts';
import { address, type SimNode, type Workload, World } from '../auth/world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let backend: Workload;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  world.require(frontend, backend);
});
afterEach(() => world.close());

const rule = { file: '/policies/backend.yaml', line: 13, policy: 'default/backend', path: 'spec.ingress[0]' };

function partsOf(node: SimNode): Parts {
  return {
    config: { node: { name: node.name }, endpoints: [], enforcement: 'enforce' },
    server: { identities: world.identities, nodes: world.nodeTable, node: { info: node.info } },
    channels: {
      get: (info: { id: number }) => node.channelTo.get(info.id as never),
      list: () => [...node.channelTo.values()],
      lastFailure: () => ({ reason: 'PEER_UNREACHABLE', count: 3, retryInMs: 1_500 }),
    },
    manager: node.manager,
    endpoints: { view: () => [{ endpoint: frontend.endpoint, name: 'frontend' }] },
    enforcement: { view: () => ({ stopped: false }) },
    policy: {
      decide: (from: never, to: never) => {
        const { verdict, authType } = world.policy.decide(from, to);
        const isDenied = verdict === 'deny';
        return {
          ...{ verdict, authType, rule: isDenied ? 0 : 1 },
          ...{ egress: { verdict: 'allow' }, ingress: { verdict }, observed: undefined },
        };
      },
      rule: (index: number) => (index === 0 ? undefined : { ...rule, direction: 'ingress', action: 'allow' }),
    },
    path: { describe: () => ({ type: 'wireguard' }), peers: async () => [] },
    clock: world.time,
  } as unknown as Parts;
}

const ask = (port = 80) => explainPair(partsOf(a), { from: 'frontend', to: 'backend', port, protocol: 'tcp' });
const textOf = async () =>
  explanationText((await ask()) as never)
    .split('\n')
    .map((line) => line.replace(/ {2,}/g, ' | ').trim());

async function prove() {
  world.send(frontend, backend);
  await world.settle();
}

describe('explain says', () => {
  test('that a pair is proven, and on which channel', async () => {
    await prove();
    expect(await ask()).toMatchObject({
      verdict: 'allow',
      policy: { authentication: 'spiffe', rule },
      fences: [{ endpoint: 'frontend', open: true, waitsFor: [] }],
      channels: [{ nodeName: 'b', state: 'open', role: 'client' }],
      vouches: [{ address: '10.0.2.2', identity: 301, nodeName: 'b' }],
      authenticators: [{ nodeName: 'b', remote: 301, onChannel: true }],
      proofs: [{ local: 300, remote: 301, remoteNodeName: 'b' }],
    });
    expect(await textOf()).toContain('channel | to b: open, as TLS client');
  });

  test('once for each node, that not both are proven, however many addresses the node vouches for', async () => {
    b.manager.addEndpoint({ ...backend, endpoint: 99, addresses: [address('10.0.2.3')] });
    await prove();
    world.send(frontend, address('10.0.2.3'));
    await world.settle();
    expect(await ask()).toMatchObject({ vouches: [{}, {}], authenticators: [{ nodeName: 'b' }] });
  });

  test('on demand while nothing stands in the way, and no while the node’s own side has nothing to prove itself with', async () => {
    expect(await ask()).toMatchObject({ verdict: 'on demand' });
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    expect(await ask()).toMatchObject({
      verdict: 'deny',
      because: 'policy requires authentication, and identity 300 of this node cannot prove itself: the SVID is revoked',
      ownSvid: [{ identity: 300, refusal: 'AUTH_REVOKED' }],
    });
    a.svids.clear();
    expect(await ask()).toMatchObject({ verdict: 'deny', ownSvid: [{ refusal: 'AUTH_NO_SVID' }] });
  });

  test('why there is no channel to the node of the other side, although nobody vouches any more', async () => {
    await prove();
    world.cut('a', 'b');
    await world.pass(31_000);
    expect(await ask()).toMatchObject({
      channels: [{ nodeName: 'b', state: 'closed', lastFailure: { reason: 'PEER_UNREACHABLE', count: 3 } }],
      vouches: [],
      proofs: [],
    });
    expect(await textOf()).toContain(
      'channel | to b: closed: PEER_UNREACHABLE: the peer channel could not be opened, tried again in 1.5s',
    );
    expect(await peers(partsOf(a))).toMatchObject([
      { name: 'b', channel: 'closed', lastFailure: { reason: 'PEER_UNREACHABLE' } },
    ]);
  });

  test('which connections are proven, each by itself; a next one is on demand', async () => {
    world.require(frontend, backend, 'spiffe-connection');
    world.connect(a, b);
    await world.settle();
    world.sendFlow(frontend, backend, 40_001);
    await world.settle();
    expect(await ask()).toMatchObject({
      verdict: 'on demand',
      proofs: [{ authType: 'spiffe-connection', flow: '6 10.0.1.2 40001 10.0.2.2 80' }],
    });
    expect((await textOf()).find((line) => line.startsWith('auth entry'))).toMatch(
      /^auth entry \| 300 with 301 at b, ends in .*, for 6 10\.0\.1\.2 40001 10\.0\.2\.2 80 alone$/,
    );
  });

  test('that no port was named, where that decides', async () => {
    world.denied.add(`${frontend.identity}>${backend.identity}`);
    expect((await ask(80)).because).toBe('no rule of the policies allows it');
    expect((await ask(0)).because).toBe(
      'no rule of the policies allows it; no port was named, so only rules for all ports count',
    );
  });
});
