/** A process that follows the interfaces of its namespace as the agent does, and tells when an endpoint opened or closed. */
import { native } from '../../../native/index.ts';
import type { EndpointConfig } from '../../../src/agent/config.ts';
import { Endpoints } from '../../../src/agent/endpoints.ts';
import { watchInterfaces } from '../../../src/agent/interfaces.ts';
import { createLogger } from '../../../src/base/log.ts';
import { systemClock } from '../../../src/datapath/clock.ts';
import { type DatapathOptions, openDatapath } from '../../../src/datapath/datapath.ts';
import { securityIdentity } from '../../../src/model/ids.ts';

const { options, configs } = JSON.parse(process.argv[2]!) as {
  options: Omit<DatapathOptions, 'clock' | 'log' | 'onSignal' | 'onStep'>;
  configs: EndpointConfig[];
};
native().setParentDeathSignal(9);
const log = createLogger('interfaces-host', 'warn');
const datapath = openDatapath({ ...options, clock: systemClock(), log, onSignal: () => {} });
const identities = new Map(configs.map(({ spiffeId }, i) => [spiffeId, securityIdentity(300 + i)]));
const interfaces = watchInterfaces({
  changed: (names) => endpoints.reconcileInterfaces(names),
  log,
  pollMs: 3_600_000, // what is found is found by the kernel's word
});
const endpoints = new Endpoints({
  configs,
  interfaces,
  datapath,
  host: { add: () => ({ generation: 1n, open: true }), close: () => {} },
  identities: {
    rows: () => [],
    byIdentity: () => undefined,
    bySpiffeId: (id) => ({ identity: identities.get(id)!, spiffeId: id, labels: {}, nodes: [] }),
  },
  audit: {
    emit: ({ kind, detail }) => process.send!({ kind, endpoint: detail?.endpoint, atNs: native().bootTimeNs() }),
  },
  log,
});
endpoints.reconcile();
process.on('message', (message: { blockMs?: number }) => {
  if (message.blockMs === undefined) process.send!({ endpoints: endpoints.view() });
  else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, message.blockMs);
});
process.send!({ ready: true });
