/** One key (both identities, the node, the type): how many authentications of it are under way, when it is left alone, and when it is renewed. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, ProveRequest } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let backend: Workload;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  backend = await world.workload('backend', b, '10.0.2.2', 400);
});
afterEach(() => world.close());

/** On node a, each to be proven to the backend. */
async function callers(count: number): Promise<Workload[]> {
  const made: Workload[] = [];
  for (let i = 0; i < count; i++) {
    const one = await world.workload(`caller${i}`, a, `10.0.1.${10 + i}`, 300 + i);
    world.require(one, backend);
    made.push(one);
  }
  return made;
}

/** Who began an exchange, in order. */
const begun = () =>
  world.frames
    .filter(({ type, from }) => type === FrameType.FRAME_TYPE_PROVE_REQUEST && from === 'a')
    .map(({ body }) => ProveRequest.decode(body).localIdentity);

describe('one key', () => {
  test('has one authentication under way, however many packets wait for it: all of them go', async () => {
    const [one] = await callers(1);
    const twin = await world.workload('caller0', a, '10.0.1.99', 300);
    world.connect(a, b);
    await world.settle();
    for (let i = 0; i < 5; i++) for (const from of [one!, twin]) world.send(from, backend);
    void a.manager.authenticate({
      local: one!.identity,
      remote: backend.identity,
      remoteNode: b.info.id,
      authType: 'spiffe',
    });
    await world.settle();
    expect(begun()).toEqual([300]);
    expect(new Set(a.released)).toEqual(new Set(['10.0.1.10>10.0.2.2', '10.0.1.99>10.0.2.2']));
  });

  test('that failed is left alone by itself, twice as long each time up to the bound; others are tried at once', async () => {
    const [one, other] = await callers(2);
    a.svids.delete(one!.identity);
    world.connect(a, b);
    await world.settle();
    world.send(one!, backend);
    await world.settle();
    const waits: number[] = [];
    for (let i = 0; i < 8; i++) {
      expect(a.isRefused(one!.identity, backend.identity, b.info.id)).toBe(true);
      let waitedMs = 0;
      for (; world.send(one!, backend) === 'dropped'; waitedMs += 100) await world.pass(100);
      waits.push(waitedMs);
      await world.settle();
    }
    // 0.8 and half of the jitter, in steps of 100 ms.
    expect(waits).toEqual([900, 1_800, 3_600, 7_200, 14_400, 27_000, 27_000, 27_000]);
    expect(world.send(other!, backend)).toBe('held');
    await world.settle();
    expect(a.hasAuth(other!.identity, backend.identity, b.info.id)).toBe(true);
  });

  test('is told the reason when too many authentications are under way, and is proven once there is room', async () => {
    world.settings = { queueSize: 2 };
    a.start();
    const [one, two, three] = await callers(3);
    world.connect(a, b);
    await world.settle();
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE ? undefined : [frame]);
    const prove = ({ identity }: Workload) =>
      a.manager.authenticate({ local: identity, remote: backend.identity, remoteNode: b.info.id, authType: 'spiffe' });
    const waiting = [one!, two!].map(prove);
    await world.settle();
    expect(await prove(three!)).toEqual({ ok: false, error: 'AUTH_QUEUE_FULL' });
    expect(a.reasons('auth.failed')).toEqual(['AUTH_QUEUE_FULL']);
    await world.pass(5_100);
    for (const outcome of waiting) expect(await outcome).toEqual({ ok: false, error: 'AUTH_TIMEOUT' });
    world.intercept = undefined;
    const again = prove(three!);
    await world.settle();
    expect(await again).toMatchObject({ ok: true });
  });
});

test('entries that were written together are renewed one by one, well before they end', async () => {
  let draws = 0;
  world.settings = { maxAuthAgeMs: 100_000 };
  for (const node of [a, b]) node.start({ random: () => (draws++ % 20) / 20 });
  b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
  const made = await callers(12);
  for (const from of made) world.send(from, backend);
  await world.settle();
  expect(a.kernelAuth.size).toBe(12);
  world.frames.length = 0;
  const perSecond: number[] = [];
  for (let second = 0; second < 100; second++) {
    const before = begun().length;
    await world.pass(1_000);
    perSecond.push(begun().length - before);
  }
  const busy = perSecond.flatMap((count, second) => (count > 0 ? [second] : []));
  expect(busy.length).toBeGreaterThan(3);
  expect(Math.min(...busy)).toBeGreaterThanOrEqual(74);
  expect(Math.max(...busy)).toBeLessThan(86);
  expect(new Set(begun()).size).toBe(12);
  for (const from of made) expect(world.send(from, backend)).toBe('passed');
});
