/** What the identity server says reaches the kernel's tables by push: when a version is said to be in force, what it took away is gone. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { followServer } from '../../../src/agent/follow-server.ts';
import { ChangeQueue, type SyncChange } from '../../../src/agent/server-client/changes.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { NodeId, NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { type SimNode, type Workload, World } from '../auth/world.ts';

const domain = 'example.org' as TrustDomain;
const nothing = { changed: [], removed: [] };
const unchanged: SyncChange = {
  ...{ version: 1n, snapshot: false, bundle: false, revocations: [] },
  ...{ entries: nothing, identities: nothing, nodes: nothing },
};

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let other: Workload;
let backend: Workload;
let queue: ChangeQueue;
/** What was done, in order. */
let done: string[];
let audit: AuditEvent[];
let forgetting: Promise<void>;
let svidsChanged: () => void;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  other = await world.workload('other', a, '10.0.1.3', 302);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  for (const from of [frontend, other]) {
    world.require(from, backend);
    world.send(from, backend);
  }
  await world.settle();
  expect(keys()).toEqual(['300>301', '302>301']);
  done = [];
  audit = [];
  forgetting = Promise.resolve();
  queue = new ChangeQueue(createLogger('test', 'silent'), () => done.push('failed'));
  const step = (name: string) => () => void done.push(`${name} with ${keys().join(' ') || 'no proof'}`);
  followServer({
    server: {
      onChange: (listener) => queue.add(listener, { ...unchanged, snapshot: true }, () => {}),
      onUrgent: (listener) => queue.onUrgent(listener),
    },
    svids: {
      subscribe: (listener: () => void) => {
        svidsChanged = listener;
        return () => {};
      },
    } as never,
    surroundings: { apply: step('surroundings') },
    endpoints: { reconcile: step('endpoints') },
    policy: { apply: step('policy') },
    manager: a.manager,
    channels: { revokeCheck: step('channels') },
    path: {
      forget: async (node: NodeId) => {
        await forgetting;
        done.push(`forgot ${node}`);
      },
    },
    audit: { emit: (event) => audit.push(event) },
  });
  await settled();
  done.length = 0;
});
afterEach(() => world.close());

const keys = () => [...a.kernelAuth.values()].map((entry) => `${entry.local}>${entry.remote}`).sort();

async function settled() {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Tells it, and says which proofs there were when it was in force. */
async function push(change: Partial<SyncChange>): Promise<string[] | undefined> {
  let inForce: string[] | undefined;
  queue.push({ ...unchanged, ...change }, () => {
    inForce = keys();
  });
  await settled();
  return inForce;
}

describe('in force is', () => {
  test('a revocation: of an identity, a certificate, a node', async () => {
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    expect(await push({ revocations: world.ca.revocations() })).toEqual(['302>301']);
    expect(audit).toEqual([{ kind: 'revocation.in_force', detail: { auth_entries: 1 } }]);
    expect(done[0], 'before channels are looked at').toBe('channels with 302>301');
    world.ca.revoke({ node: 'b' as NodeName }, 'test');
    expect(await push({ revocations: world.ca.revocations() })).toEqual([]);
  });

  test('a revocation first, whatever comes with it', async () => {
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    world.nodes.splice(world.nodes.indexOf(b), 1);
    const nodes = { changed: [], removed: [b.info] };
    expect(await push({ revocations: world.ca.revocations(), nodes })).toEqual([]);
    expect(done).toEqual([
      'channels with 302>301',
      'channels with 302>301',
      'surroundings with 302>301',
      'channels with no proof',
      `forgot ${b.info.id}`,
    ]);
  });

  test('a revocation at once, while a change before it waits for a tunnel that does not answer', async () => {
    forgetting = new Promise(() => {});
    const gone = { ...b.info, id: 77 as NodeId };
    expect(await push({ nodes: { changed: [], removed: [gone] } })).toBeUndefined();
    expect(keys()).toEqual(['300>301', '302>301']);
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    queue.push({ ...unchanged, revocations: world.ca.revocations() }, () => done.push('in force'));
    expect(keys(), 'when the call returns').toEqual(['302>301']);
    await settled();
    expect(done, 'which cannot be said of its version').not.toContain('in force');
  });

  test('a bundle that lost the authority', async () => {
    world.bundles.set(domain, { trustDomain: domain, authorities: [] });
    expect(await push({ bundle: true })).toEqual([]);
    expect(a.epoch, 'an epoch for all at once').toBe(2);
    // at once, and in its turn
    expect(done).toEqual(['channels with no proof', 'channels with no proof']);
  });

  test('an identity that went, and one that lives elsewhere now', async () => {
    const row = world.rows.get(frontend.identity)!;
    world.rows.delete(frontend.identity);
    expect(await push({ identities: { changed: [], removed: [row] } })).toEqual(['302>301']);
    expect(done).toEqual(['policy with 300>301 302>301', 'endpoints with 300>301 302>301']);
    const far = { ...world.rows.get(backend.identity)!, nodes: [a.info.spiffeId] };
    world.rows.set(backend.identity, far);
    expect(await push({ identities: { changed: [far], removed: [] } })).toEqual([]);
  });

  test('a node that left: its proofs go at once, and the version waits until the tunnel has forgotten it', async () => {
    let forget = () => {};
    forgetting = new Promise((resolve) => {
      forget = resolve;
    });
    world.nodes.splice(world.nodes.indexOf(b), 1);
    expect(await push({ nodes: { changed: [], removed: [b.info] } })).toBeUndefined();
    expect(keys()).toEqual([]);
    expect(done).not.toContain(`forgot ${b.info.id}`);
    forget();
    await settled();
    expect(done).toContain(`forgot ${b.info.id}`);
    expect(done).not.toContain('failed');
  });
});

test('a change of nothing that proofs rest on takes none away', async () => {
  expect(await push({ version: 2n })).toEqual(['300>301', '302>301']);
  expect(done).toEqual([]);
});

test('a new SVID of this node’s workloads is told on', async () => {
  let told = 0;
  a.manager.svidsChanged = () => {
    told += 1;
  };
  svidsChanged();
  expect(told).toBe(1);
});
