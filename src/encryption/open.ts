/** Opening the tunnel: which WireGuard, which key, and the device up. The one place where its parts are put together. */
import { native } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Tunnel } from '../model/tunnel.ts';
import type { WireguardDevice } from './device.ts';
import { openKernelDevice } from './kernel-device.ts';
import { openTunnelKey } from './key-file.ts';
import { Links } from './rtnetlink.ts';
import { WireguardTunnel } from './tunnel.ts';
import { openWireguardGo } from './wireguard-go.ts';

export interface WireguardTunnelOptions {
  /** At most 15 characters. */
  readonly device: string;
  /** UDP. */
  readonly listenPort: number;
  /** 0600, made at the first start. */
  readonly keyFile: string;
  readonly mtu: number;
  /** "auto": whichever device stands already, else the kernel's where it has WireGuard, else wireguard-go. */
  readonly implementation: 'auto' | 'kernel' | 'wireguard-go';
  /** Where wireguard-go's log goes. Its socket is /var/run/wireguard/<device>.sock. */
  readonly runDir: string;
  /** Of the encrypted packets. Default 0: none. */
  readonly fwmark?: number;
  readonly log: Logger;
  /** Default: found in PATH. */
  readonly wireguardGoProgram?: string;
  /** How long peers of an earlier run that were not set again may stay. Default 60,000. */
  readonly orphanMs?: number;
  /** wireguard-go was restarted: programs must be attached to the new device, which is still down. */
  readonly onDeviceReplaced?: (ifindex: number) => void | Promise<void>;
}

/** @throws CountersignError with what to do, if there is no WireGuard of the wanted kind or the device is not ours */
export async function openWireguardTunnel(options: WireguardTunnelOptions): Promise<Tunnel> {
  if (!/^[a-zA-Z0-9_.-]{1,15}$/.test(options.device)) {
    throw new CountersignError(
      'bad-input',
      `encryption device ${JSON.stringify(options.device)}: 1 to 15 letters or digits`,
    );
  }
  const key = openTunnelKey(options.keyFile);
  const request = native().netlinkRequest.bind(native());
  const links = new Links(request);
  let tunnel: WireguardTunnel | undefined;
  const onRestarted = async () => {
    await tunnel?.restore(async () => options.onDeviceReplaced?.(tunnel!.ifindex));
  };
  const device = await openDevice(options, links, request, onRestarted);
  const { listenPort, mtu } = options;
  tunnel = new WireguardTunnel(
    { device: options.device, listenPort, mtu, fwmark: options.fwmark ?? 0, orphanMs: options.orphanMs ?? 60_000 },
    key,
    device,
    links,
    options.log,
  );
  await tunnel.start();
  return tunnel;
}

async function openDevice(
  options: WireguardTunnelOptions,
  links: Links,
  request: ConstructorParameters<typeof Links>[0],
  onRestarted: () => Promise<void>,
): Promise<WireguardDevice> {
  const standing = links.get(options.device)?.kind;
  if (options.implementation !== 'wireguard-go' && (standing === undefined || standing === 'wireguard')) {
    const kernel = openKernelDevice(options.device, links, request);
    if (kernel !== undefined) return kernel;
    if (options.implementation === 'kernel') {
      throw new CountersignError(
        'unsupported',
        'this kernel has no WireGuard; load the module wireguard or set encryption.wireguard.implementation to wireguard-go',
      );
    }
  }
  if (options.implementation === 'kernel') {
    throw new CountersignError(
      'already-exists',
      `the device ${options.device} is of kind ${standing}, not the kernel's WireGuard; remove it: ip link del ${options.device}`,
    );
  }
  const { device, runDir, log, wireguardGoProgram: program } = options;
  return openWireguardGo({ device, runDir, log, links, onRestarted, ...(program === undefined ? {} : { program }) });
}
