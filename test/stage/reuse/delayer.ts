/** Somebody on the path: keeps a node's packets in the tunnel for a while, and sends them on later. Handshakes and the peer channel pass. */
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { NET } from '../../../src/base/registry/net.ts';
import { type Capture, capture } from '../pcap.ts';
import { inNetns, sh, until } from '../shell.ts';
import type { Stage } from '../stage.ts';
import { UNDERLAY_DEVICE } from '../topology.ts';

const TABLE = 'cs_delay';
const PORT = NET.wireguardPort;
/** Ethernet, IPv4 and UDP headers. */
const OUTER = 14 + 20 + 8;
/** First octet of a WireGuard message that carries a packet, and what such a message has beside the packet. */
const TRANSPORT = 4;
const TRANSPORT_OVERHEAD = 32;
/** Where it says for which session it is. */
const RECEIVER = [4, 8] as const;
/** At least so much is kept, in octets of the capture: some dozens of packets. */
const ENOUGH = 20_000;

export class Delayer {
  readonly #stage: Stage;
  readonly #from: string;
  readonly #to: string;
  readonly #file: string;
  #capture: Capture | undefined;
  #held: Buffer[] = [];

  /** Between two nodes, one way. */
  constructor(stage: Stage, from: string, to: string) {
    this.#stage = stage;
    this.#from = from;
    this.#to = to;
    this.#file = join(stage.dir, 'captures', `delayed-${from}-${to}.pcap`);
  }

  /** From now on no packet passes; resolves when some are held. */
  async hold(): Promise<void> {
    this.#nft(
      `table inet ${TABLE} { chain input { type filter hook input priority 0; }; }; ${this.#rule(`@th,64,8 ${TRANSPORT}`)}`,
    );
    const filter = `udp and src host ${this.#address(this.#from)} and dst port ${PORT}`;
    this.#capture = await capture(this.#stage.netns(this.#to), UNDERLAY_DEVICE, this.#file, filter);
    await until('packets to be on their way', 10_000, () => (statSync(this.#file).size > ENOUGH ? true : undefined));
  }

  /** What the sessions of before bring from now on is lost, not held; others pass. */
  async enough(): Promise<void> {
    const packets = await this.#capture!.stop(false);
    this.#held = packets
      .map(({ bytes }) => bytes.subarray(OUTER))
      // A keepalive is one, too, with nothing in it.
      .filter((datagram) => datagram[0] === TRANSPORT && datagram.length > TRANSPORT_OVERHEAD);
    if (this.#held.length === 0) throw new Error(`no packet from ${this.#from} to ${this.#to} was held back`);
    const sessions = new Set(this.#held.map((datagram) => `0x${datagram.toString('hex', ...RECEIVER)}`));
    this.#nft(`flush chain inet ${TABLE} input; ${this.#rule(`@th,96,32 { ${[...sessions].join(', ')} }`)}`);
  }

  /** What was held arrives, after all; so does what is sent from now on. Returns how many packets were held. */
  letGo(): number {
    const file = `${this.#file}.json`;
    writeFileSync(file, JSON.stringify(this.#held.map((datagram) => datagram.toString('base64'))));
    // WireGuard looks at what a datagram has in it, not at where it comes from.
    const program = join(import.meta.dirname, '../programs/send-again.ts');
    const arguments_ = [program, file, this.#address(this.#to), String(PORT)];
    const [command, ...args] = inNetns(this.#stage.netns('server'), process.execPath, ...arguments_);
    sh(command!, args);
    // Only now: a session takes nothing that is thousands of packets late.
    this.#nft(`delete table inet ${TABLE}`);
    return this.#held.length;
  }

  #rule(which: string): string {
    return `add rule inet ${TABLE} input ip saddr ${this.#address(this.#from)} udp dport ${PORT} ${which} drop`;
  }

  #address(name: string): string {
    return this.#stage.spec.nodes.find((node) => node.name === name)!.underlay4;
  }

  #nft(command: string): void {
    const [program, ...args] = inNetns(this.#stage.netns(this.#to), 'nft', command);
    sh(program!, args);
  }
}
