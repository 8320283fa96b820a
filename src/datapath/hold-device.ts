/** The TUN that held packets go through: opened, and made quiet enough that only held packets are ever in it. */
import { writeFileSync } from 'node:fs';
import { native, type Tun } from '../../native/index.ts';
import { CountersignError } from '../base/errors.ts';
import { addHostAddress, setLinkUp } from './rtnetlink.ts';

/** The largest a TUN takes: a packet was admitted to the veth, the hold device must not be what refuses it. */
const MTU = 65_535;
/** 192.0.0.8, the IPv4 dummy address (RFC 7600, section 4.8): a device without any address passes no loose rp_filter. */
const DUMMY_ADDRESS = Buffer.from([192, 0, 0, 8]);
const IN6_ADDR_GEN_MODE_NONE = 1;

/** @param queueLength packets; must not be less than the budget, or the device drops what the budget admitted. */
export function openHoldDevice(name: string, queueLength: number, onPacket: (packet: Buffer) => void): Tun {
  let tun: Tun;
  try {
    tun = native().tunOpen(name, onPacket);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBUSY') {
      throw new CountersignError(
        'already-exists',
        `${name} is in use: does another agent run in this network namespace?`,
        {
          cause: error,
        },
      );
    }
    throw error;
  }
  try {
    configure(name);
    setLinkUp(tun.ifindex, { txQueueLength: queueLength, mtu: MTU });
    addHostAddress(tun.ifindex, DUMMY_ADDRESS);
  } catch (error) {
    tun.close();
    throw error;
  }
  return tun;
}

function configure(name: string): void {
  // IPv6 stays on, for what is written back; without a link-local address the stack sends no router solicitations.
  setSysctl(`ipv6/conf/${name}/addr_gen_mode`, IN6_ADDR_GEN_MODE_NONE);
  setSysctl(`ipv6/conf/${name}/accept_ra`, 0);
  setSysctl(`ipv6/conf/${name}/forwarding`, 1);
  setSysctl(`ipv4/conf/${name}/forwarding`, 1);
  // What comes back has a workload's source address, whose route leads to its veth. The greater of `all` and the device's
  // own value counts, so 2 (any route will do) beats a 1 in `all`; 0 would not.
  setSysctl(`ipv4/conf/${name}/rp_filter`, 2);
}

function setSysctl(path: string, value: number): void {
  try {
    writeFileSync(`/proc/sys/net/${path}`, String(value));
  } catch (error) {
    // A kernel without IPv6 has no such file, and nothing to set.
    if (path.startsWith('ipv6/') && (error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
}
