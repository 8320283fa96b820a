/** Many endpoints at once: the agent goes on with everything else while the kernel takes its time for each. */
import { expect, test } from 'vitest';
import type { EndpointConfig } from '../../../src/agent/config.ts';
import { Endpoints } from '../../../src/agent/endpoints.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { Datapath } from '../../../src/datapath/datapath.ts';
import { parseAddress } from '../../../src/model/address.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';

const COUNT = 60;
/** What the kernel takes for one interface here. */
const ATTACH_MS = 10;

function busy(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

function node() {
  const configs: EndpointConfig[] = Array.from({ length: COUNT }, (_, i) => ({
    name: `w${i}`,
    interface: `v-w${i}`,
    addresses: [parseAddress(`10.0.1.${i + 1}`)!],
    spiffeId: spiffeId(`spiffe://example.org/w${i}`),
  }));
  const rows = new Map<string, IdentityRow>(
    configs.map((c, i) => [
      c.spiffeId,
      { identity: securityIdentity(300 + i), spiffeId: c.spiffeId, labels: {}, nodes: [] },
    ]),
  );
  const attached: number[] = [];
  const removed: number[] = [];
  const gone = new Set<string>();
  const endpoints = new Endpoints({
    configs,
    interfaces: { indexOf: (name) => (gone.has(name) ? undefined : Number(name.slice(3)) + 10) },
    datapath: {
      listEndpoints: () => [],
      putEndpoint: ({ endpoint }: { endpoint: number }) => {
        busy(ATTACH_MS);
        attached.push(endpoint);
      },
      removeEndpoint: (endpoint: number) => void removed.push(endpoint),
    } as unknown as Datapath,
    host: { add: () => ({ generation: 1n, open: true }), close: () => {} },
    identities: {
      bySpiffeId: (id) => rows.get(id),
      byIdentity: () => undefined,
      rows: () => [...rows.values()],
    },
    audit: { emit: () => {} },
    log: createLogger('test', 'silent'),
  });
  return { endpoints, attached, removed, gone };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test('a node with many endpoints attaches them over several turns of the event loop, each once', async () => {
  const { endpoints, attached } = node();
  endpoints.reconcile();
  expect(attached.length).toBeGreaterThan(0);
  expect(attached.length).toBeLessThan(COUNT / 2);
  expect(endpoints.view().filter((e) => e.state === 'not attached').length).toBe(COUNT - attached.length);
  let turns = 0;
  while (attached.length < COUNT && turns < 1000) {
    turns++;
    endpoints.reconcile(); // as the timer does meanwhile
    await turn();
  }
  expect(turns).toBeGreaterThan(1);
  await turn();
  expect(attached.length).toBe(COUNT);
  expect(new Set(attached).size).toBe(COUNT);
  expect(endpoints.view().every((e) => e.state === 'open')).toBe(true);
});

test('what is to be closed is closed at once, whatever waits to be attached', () => {
  const { endpoints, attached, removed, gone } = node();
  endpoints.reconcile();
  gone.add('v-w0');
  endpoints.reconcile();
  expect(attached.length).toBeLessThan(COUNT);
  expect(removed).toEqual([1]);
});

test('after close nothing more is attached', async () => {
  const { endpoints, attached } = node();
  endpoints.reconcile();
  const before = attached.length;
  endpoints.close();
  await turn();
  await turn();
  expect(attached.length).toBe(before);
});
