/** The demonstration cluster: what deploy/examples describes, as namespaces. */
import { copyExamples, type StageSpec } from './stage.ts';

export const DEMO: StageSpec = {
  prefix: 'cs-demo',
  dir: '/run/countersign-demo',
  server: '10.77.0.10',
  nodes: [
    { name: 'node-a', underlay4: '10.77.0.1', underlay6: 'fd77::1', prefix4: '10.77.1.0/24', prefix6: 'fd77:1::/64' },
    { name: 'node-b', underlay4: '10.77.0.2', underlay6: 'fd77::2', prefix4: '10.77.2.0/24', prefix6: 'fd77:2::/64' },
  ],
  workloads: [
    { name: 'frontend', node: 'node-a', uid: 20001, address4: '10.77.1.10', address6: 'fd77:1::10' },
    { name: 'intruder', node: 'node-a', uid: 20003, address4: '10.77.1.11', address6: 'fd77:1::11' },
    { name: 'frontend6', node: 'node-a', uid: 20004, address4: '10.77.1.12', address6: 'fd77:1::12' },
    { name: 'monitor', node: 'node-a', uid: 20005, address4: '10.77.1.13', address6: 'fd77:1::13' },
    { name: 'nosvid', node: 'node-a', uid: 20014, address4: '10.77.1.14', address6: 'fd77:1::14' },
    { name: 'wrongsvid', node: 'node-a', uid: 20015, address4: '10.77.1.15', address6: 'fd77:1::15' },
    { name: 'stolen', node: 'node-a', uid: 20016, address4: '10.77.1.16', address6: 'fd77:1::16' },
    { name: 'backend', node: 'node-b', uid: 20002, address4: '10.77.2.10', address6: 'fd77:2::10' },
  ],
  configure: copyExamples,
};

export const BACKEND_HTTP_PORT = 8080;
export const BACKEND_UDP_PORT = 9999;
