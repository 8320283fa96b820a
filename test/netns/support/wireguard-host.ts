/** A process that holds a real tunnel inside a node's namespace and does what the test says over IPC: an agent's part of it. */
import { native } from '../../../native/index.ts';
import { createLogger } from '../../../src/base/log.ts';
import { openWireguardTunnel, type WireguardTunnelOptions } from '../../../src/encryption/open.ts';
import type { Tunnel } from '../../../src/model/tunnel.ts';

native().setParentDeathSignal(9);
const send = (message: object) => process.send!(message);
const options = JSON.parse(process.argv[2]!) as Omit<WireguardTunnelOptions, 'log'>;
const tunnel = await openWireguardTunnel({
  ...options,
  log: createLogger('wireguard-host', 'silent'),
  onDeviceReplaced: (ifindex) => void send({ replaced: ifindex }),
});
send({ ready: { publicKey: tunnel.publicKey, ifindex: tunnel.ifindex, implementation: tunnel.implementation } });

process.on('message', async ({ id, method, args }: { id: number; method: keyof Tunnel; args: unknown[] }) => {
  try {
    const result = await (tunnel[method] as (...a: unknown[]) => unknown).apply(tunnel, args);
    send({ id, result });
  } catch (error) {
    send({ id, error: String(error) });
  }
});
