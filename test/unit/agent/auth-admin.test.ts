/** `auth test` and `auth flush` on real managers: what each step says, where it stops, and what stands in the audit log. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { flushAuth, testAuth } from '../../../src/agent/auth-admin.ts';
import type { Parts } from '../../../src/agent/views.ts';
import { testText } from '../../../src/cli/commands/auth.ts';
import { explanationText } from '../../../src/cli/commands/explain.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import { type SimNode, type Workload, World } from '../auth/world.ts';

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

function partsOf(node: SimNode): Parts {
  return {
    config: { node: { name: node.name }, endpoints: [] },
    server: { identities: world.identities, nodes: world.nodeTable, node: { info: node.info } },
    channels: {
      get: (info: { id: number }) => node.channelTo.get(info.id as never),
      list: () => [...node.channelTo.values()],
    },
    manager: node.manager,
    policy: {
      ...world.policy,
      rule: () => ({ file: '/policies/backend.yaml', line: 13, policy: 'default/backend' }),
    },
    clock: world.time,
  } as unknown as Parts;
}

/** Lets simulated time pass until the answer is there. */
async function answer<T>(promise: Promise<T>): Promise<T> {
  let isDone = false;
  const done = promise.finally(() => {
    isDone = true;
  });
  done.catch(() => {});
  while (!isDone) {
    await world.pass(50);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return done;
}

const ask = (from: string, to: string, port = 80) => answer(testAuth(partsOf(a), { from, to, port, protocol: 'tcp' }));
const stepsOf = ({ steps }: Awaited<ReturnType<typeof ask>>) => steps.map(({ step, reason }) => reason ?? step);

describe('auth test', () => {
  test('opens what is missing, proves the pair and says each step', async () => {
    await world.pass(10);
    const result = await ask('frontend', 'backend');
    expect(stepsOf(result)).toEqual(['identities', 'policy', 'own SVID', 'node', 'channel', 'vouch', 'proof', 'entry']);
    expect(result.verdict).toBe('proven');
    expect(a.kernelAuth.size).toBe(1);
    const text = testText(result);
    expect(text).toContain('requires spiffe: /policies/backend.yaml:13 default/backend');
    expect(text).toMatch(/proven: both sides/);
  });

  test('works from the receiver’s node too, and on one node', async () => {
    const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
    world.require(frontend, neighbour);
    expect(stepsOf(await ask('frontend', 'neighbour'))).toEqual([
      'identities',
      'policy',
      'own SVID',
      'node',
      'proof',
      'entry',
    ]);
    const back = await answer(testAuth(partsOf(b), { from: 'frontend', to: 'backend', port: 0, protocol: '' }));
    expect(back.verdict).toBe('proven');
  });

  test('proves a connection where each is to be proven by itself', async () => {
    world.require(frontend, backend, 'spiffe-connection');
    const result = await ask('frontend', 'backend', 8080);
    expect(result).toMatchObject({ verdict: 'proven' });
    expect(a.manager.list()).toMatchObject([{ authType: 'spiffe-connection', flow: '6 10.0.1.2 0 10.0.2.2 8080' }]);
  });

  test('tries at once although the pair failed a moment ago', async () => {
    const svid = b.svids.get(backend.identity)!;
    b.svids.set(backend.identity, { ok: false, error: 'AUTH_NO_SVID' });
    expect(stepsOf(await ask('frontend', 'backend')).at(-1)).toBe('AUTH_NO_SVID');
    b.svids.set(backend.identity, svid);
    expect((await ask('frontend', 'backend')).verdict).toBe('proven');
  });

  test.each<[string, string, () => void]>([
    ['policy requires nothing', 'AUTH_NOT_REQUIRED', () => world.required.clear()],
    ['policy denies it', 'AUTH_NOT_REQUIRED', () => void world.denied.add('300>301')],
    ['there is no own SVID', 'AUTH_NO_SVID', () => a.svids.clear()],
    ['the node cannot be reached', 'PEER_UNREACHABLE', () => world.cut('a', 'b')],
    ['the node vouches for nothing', 'AUTH_NOT_VOUCHED', () => b.manager.closeEndpoint(backend.endpoint)],
  ])('stops with a reason when %s', async (_, reason, change) => {
    change();
    const result = await ask('frontend', 'backend');
    expect(result.verdict).toBe('refused');
    expect(stepsOf(result).at(-1)).toBe(reason);
    expect(testText(result)).toContain(reason);
  });

  test('is for a pair of which one lives here, by names that somebody has', async () => {
    const far = await world.workload('far', b, '10.0.2.9', 309);
    world.require(far, backend);
    await expect(ask('far', 'backend')).rejects.toThrow(/neither far nor backend runs on this node/);
    await expect(ask('nobody', 'backend')).rejects.toThrow(/nobody is called "nobody"/);
    await expect(ask('world', 'backend')).rejects.toThrow(/world is no workload/);
    await expect(answer(testAuth(partsOf(a), { from: 'a', to: 'b', port: 1, protocol: 'x' }))).rejects.toThrow(
      /protocol "x"/,
    );
  });
});

describe('auth flush', () => {
  const events: AuditEvent[] = [];
  const audit = { emit: (event: AuditEvent) => void events.push(event) };
  const flush = (from: string, to: string) => flushAuth(partsOf(a), { from, to, actor: 'uid 0' }, audit);

  beforeEach(async () => {
    events.length = 0;
    const other = await world.workload('other', a, '10.0.1.3', 302);
    world.require(other, backend);
    for (const one of [frontend, other]) world.send(one, backend);
    await world.settle();
    expect(a.kernelAuth.size).toBe(2);
  });

  test('takes the pair’s entries, in either order, and is audited with who asked', () => {
    expect(flush('backend', 'frontend')).toEqual({ flushed: 1 });
    expect(a.kernelAuth.size).toBe(1);
    expect(events).toEqual([
      {
        kind: 'admin.action',
        source: { node: 'a' },
        actor: 'uid 0',
        detail: { action: 'auth flush', flushed: 1, from: 'backend', to: 'frontend' },
      },
    ]);
  });

  test('takes all without a pair, and nothing for half a pair', () => {
    expect(() => flush('frontend', '')).toThrow(/both sides/);
    expect(flush('', '')).toEqual({ flushed: 2 });
    expect(a.kernelAuth.size).toBe(0);
    expect(events).toHaveLength(1);
  });
});

test('explain shows one line for each link of the chain', () => {
  const text = explanationText({
    verdict: 'allow',
    because: 'policy allows it and both sides are proven',
    from: { spiffeId: 'spiffe://example.org/frontend', identity: 256 },
    to: { spiffeId: 'spiffe://example.org/backend', identity: 257 },
    policy: {
      egress: 'allow',
      ingress: 'allow',
      authentication: 'spiffe',
      rule: { policy: 'default/backend', file: 'backend.yaml', line: 13, path: 'spec.ingress[0]', action: 'allow' },
    },
    vouches: [{ address: '10.0.2.2', identity: 257, nodeName: 'b', node: 2, generation: '7', leaseLeftMs: 20_000 }],
    fences: [{ endpoint: 'frontend', open: true, waitsFor: ['c'] }],
    authenticators: [{ nodeName: 'b', node: 2, remote: 257, onChannel: true }],
    proofs: [{ local: 256, remote: 257, remoteNode: 2, remoteNodeName: 'b', expiresInMs: 61_000, adopted: false }],
    tunnel: 'wireguard',
    tunnels: [{ nodeName: 'b', node: 2, lastHandshake: '3s ago' }],
    ownSvid: [{ identity: 256 }],
    lastFailure: { reason: 'AUTH_TIMEOUT', text: 'it took too long', atMs: 0, count: 1, retryInMs: 500 },
  });
  expect(text.split('\n').map((line) => line.replace(/ {2,}/g, ' | ').trim())).toEqual([
    'verdict | allow: policy allows it and both sides are proven',
    'from | spiffe://example.org/frontend (identity 256)',
    'to | spiffe://example.org/backend (identity 257)',
    'policy | egress allow, ingress allow, authentication spiffe',
    '| backend.yaml:13 default/backend spec.ingress[0] (allow)',
    'fence | frontend is open; shut towards c, which must let go of an earlier owner first',
    'vouch | b vouches for 10.0.2.2 as 257, generation 7, lease 20.0s left',
    'own SVID | of 256: there',
    'authenticators | of both sides stand on the channel to b',
    'auth entry | 256 with 257 at b, ends in 1m1s',
    'tunnel | wireguard to b, last handshake 3s ago',
    'last failure | 1970-01-01T00:00:00.000Z: AUTH_TIMEOUT: it took too long, tried again in 0.5s',
  ]);
});
