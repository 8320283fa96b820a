/** Random packets: mostly sound ones of all kinds, in conversations, then damaged in a few places. */
import type { Program } from '../reference/state.ts';
import type { Random } from './random.ts';
import { ADDRESSES, type Name, PORTS, PROVEN_PORTS } from './worlds.ts';

export interface RandomPacket {
  readonly program: Program;
  /** From the Ethernet header on; bare IP for the hold and tunnel programs. */
  readonly bytes: Buffer;
  readonly mark: number;
}

/** Who talks with whom about what: packets of one conversation meet each other's flows. */
interface Conversation {
  readonly family: 0 | 1;
  readonly peer: Name;
  readonly kind: 'tcp' | 'udp' | 'sctp' | 'echo';
  readonly local: number;
  readonly remote: number;
  readonly id: number;
}

const BARE: readonly Program[] = ['from_hold', 'to_tunnel', 'from_tunnel'];

export class Talk {
  readonly #r: Random;
  readonly #conversations: Conversation[] = [];

  constructor(r: Random) {
    this.#r = r;
  }

  next(): RandomPacket {
    const r = this.#r;
    const program = r.weighted<Program>([
      ['from_workload', 42],
      ['to_workload', 36],
      ['from_hold', 8],
      ['to_tunnel', 3],
      ['from_tunnel', 2],
      ['to_netdev', 12],
      ['from_netdev', 12],
    ]);
    const out = program === 'from_workload' || program === 'from_hold' || program.startsWith('to_t');
    const leaves = out || program === 'to_netdev';
    const c = this.#conversation();
    const onPath = program.endsWith('netdev');
    const local: Name = r.oneIn(onPath ? 2 : 25)
      ? r.pick(['B', 'R', 'N', 'H', 'H', 'H', 'W', 'A', 'S', 'M'] as const)
      : 'A';
    const [from, to] = leaves ? [local, c.peer] : [c.peer, local];
    const addresses = [this.#address(from, c.family), this.#address(to, c.family)] as const;
    const special = r.below(100);
    const v6 = c.family === 1;
    let frameType = v6 ? 0x86dd : 0x0800;
    let body: Buffer;
    if (special < 3 && !v6 && !BARE.includes(program)) {
      frameType = 0x0806;
      body = this.#arp(addresses);
    } else if (special < 6 && v6) {
      body = this.#neighbour(addresses);
    } else if (special < 14) {
      body = this.#error(c, addresses, leaves);
    } else {
      body = this.#ip(addresses, this.#transport(c, v6, leaves), { id: c.id });
    }
    if (r.percent(25)) body = this.#damaged(body);
    if (r.oneIn(12)) body = Buffer.concat([body, Buffer.alloc(r.below(40))]);
    const mark = this.#mark(program, from);
    return { program, bytes: BARE.includes(program) ? body : this.#frame(frameType, body), mark };
  }

  #conversation(): Conversation {
    const r = this.#r;
    if (this.#conversations.length > 0 && r.percent(75)) return r.pick(this.#conversations);
    const c: Conversation = {
      family: r.percent(50) ? 0 : 1,
      peer: r.weighted<Name>([
        ['R', 30],
        ['B', 15],
        ['S', 12],
        ['W', 12],
        ['V', 8],
        ['H', 10],
        ['M', 6],
        ['N', 6],
        ['A', 3],
      ]),
      kind: r.weighted([
        ['tcp', 8],
        ['udp', 7],
        ['sctp', 4],
        ['echo', 3],
      ]),
      local: r.pick(r.oneIn(2) ? PROVEN_PORTS : PORTS),
      remote: r.pick(r.oneIn(2) ? PROVEN_PORTS : PORTS),
      id: r.below(3),
    };
    this.#conversations.push(c);
    if (r.oneIn(12)) {
      const dhcp = {
        kind: 'udp',
        peer: 'H',
        local: c.family === 0 ? 68 : 546,
        remote: c.family === 0 ? 67 : 547,
      } as const;
      this.#conversations.push({ ...c, ...dhcp });
    }
    return c;
  }

  #address(name: Name, family: 0 | 1): Buffer {
    const r = this.#r;
    if (r.oneIn(60)) {
      const odd = family === 0 ? ['00000000', 'ffffffff', 'e0000001', '7f000001'] : ODD_V6;
      return Buffer.from(r.pick(odd), 'hex');
    }
    const bytes = Buffer.from(ADDRESSES[name][family], 'hex');
    return family === 0 ? bytes.subarray(12) : bytes;
  }

  #mark(program: Program, from: Name): number {
    const r = this.#r;
    const lower = r.oneIn(4) ? r.below(65536) : 0;
    const kinds = [0, 0x10050000, 0x10060000, 0x20000000, 0x30000000, 0x104d0000, 0x40000000, 0xffff0000];
    if (r.oneIn(8)) return (r.pick(kinds) + lower) >>> 0;
    if (program === 'to_workload') {
      const right: Partial<Record<Name, number>> = { A: 0x10050000, B: 0x10060000, R: 0x20000000, S: 0x20000000 };
      const through = from === 'N' || (from === 'M' && r.percent(50)) ? 0x20000000 : 0;
      return ((right[from] ?? through) + lower) >>> 0;
    }
    if (program === 'to_tunnel' || program === 'to_netdev') {
      return ((from === 'A' ? 0x10050000 : from === 'B' ? 0x10060000 : 0) + lower) >>> 0;
    }
    return lower;
  }

  #frame(type: number, body: Buffer): Buffer {
    const r = this.#r;
    const head = Buffer.from('020000000001 02000000000a'.replace(' ', ''), 'hex');
    if (r.oneIn(30)) head[6 + r.below(6)]! ^= 1;
    const tags: Buffer[] = [];
    if (r.oneIn(40)) {
      for (let i = 0; i <= r.below(3); i++)
        tags.push(Buffer.concat([u16(r.pick([0x8100, 0x88a8])), u16(r.below(4096))]));
    }
    const shown = r.oneIn(80) ? r.pick([0x88cc, 0x8847, 0x0040, 0x9100, 0x0800, 0x86dd, 0x0806]) : type;
    return Buffer.concat([head, ...tags, u16(shown), body]);
  }

  // ---- IP ----------------------------------------------------------------------------------------------------------

  #ip(
    [source, destination]: readonly [Buffer, Buffer],
    { protocol, bytes }: { protocol: number; bytes: Buffer },
    o: { ttl?: number; id?: number },
  ): Buffer {
    const r = this.#r;
    const piece = r.percent(14) ? this.#piece(bytes, o.id ?? r.below(3)) : undefined;
    const payload = piece?.bytes ?? bytes;
    if (source.length === 4) {
      const options = r.oneIn(8) ? this.#options() : Buffer.alloc(0);
      const head = Buffer.alloc(12);
      head[0] = 0x45 + options.length / 4;
      head.writeUInt16BE(20 + options.length + payload.length, 2);
      head.writeUInt16BE(piece?.id ?? r.below(65536), 4);
      if (piece !== undefined) head.writeUInt16BE(piece.offset / 8 + (piece.more ? 0x2000 : 0), 6);
      else if (r.oneIn(3)) head.writeUInt16BE(0x4000, 6);
      head[8] = o.ttl ?? 64;
      head[9] = protocol;
      return Buffer.concat([head, source, destination, options, payload]);
    }
    const chain: [number, Buffer][] = [];
    const extensions = () => {
      for (let n = r.oneIn(8) ? 1 + r.below(r.oneIn(8) ? 9 : 2) : 0; n > 0; n--) chain.push(this.#extension());
    };
    extensions();
    if (piece !== undefined) {
      const head = Buffer.alloc(7);
      head.writeUInt16BE(piece.offset + (piece.more ? 1 : 0), 1);
      head.writeUInt32BE(piece.id, 3);
      chain.push([44, head]);
      if (piece.offset === 0) extensions();
    }
    const headers = chain.map(([, rest], i) => Buffer.concat([Buffer.from([chain[i + 1]?.[0] ?? protocol]), rest]));
    const length = headers.reduce((sum, h) => sum + h.length, payload.length);
    const head = Buffer.alloc(8);
    head[0] = 0x60;
    head.writeUInt16BE(length, 4);
    head[6] = chain[0]?.[0] ?? protocol;
    head[7] = o.ttl ?? 64;
    return Buffer.concat([head, source, destination, ...headers, payload]);
  }

  /** A piece of the conversation's datagram: few numbers, so that pieces of different ones meet too. */
  #piece(bytes: Buffer, conversation: number): { bytes: Buffer; id: number; offset: number; more: boolean } {
    const r = this.#r;
    const id = 1 + (r.percent(70) ? conversation : r.below(3));
    if (r.percent(50)) {
      const cut = r.oneIn(6) ? r.below(bytes.length + 1) : Math.floor(bytes.length / 8) * 8;
      return { bytes: bytes.subarray(0, cut), id, offset: 0, more: true };
    }
    const offset = r.weighted([
      [64, 4],
      [8, 3],
      [16, 3],
      [24, 3],
      [32, 2],
      [0, 1],
      [65528, 1],
    ]);
    const more = r.oneIn(3);
    const size = more ? 8 * (1 + r.below(4)) : r.below(33);
    return { bytes: Buffer.alloc(size, 0x62), id, offset, more };
  }

  #options(): Buffer {
    const r = this.#r;
    const out: number[] = [];
    const room = 4 * (1 + r.below(r.oneIn(3) ? 10 : 4));
    while (out.length < room && !r.oneIn(20)) {
      const type = r.weighted([
        [1, 6],
        [7, 2],
        [68, 2],
        [148, 2],
        [131, 1],
        [137, 1],
        [0, 1],
        [r.below(256), 1],
      ]);
      if (type < 2) {
        out.push(type);
        continue;
      }
      // Now and then a length that cannot be.
      const size = r.oneIn(20) ? r.below(44) : 2 + r.below(11);
      out.push(type, size, ...Array.from({ length: Math.max(0, size - 2) }, () => r.pick([0, 1, 131, 137, 255])));
    }
    const bytes = Buffer.from(out.slice(0, 40));
    return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
  }

  #extension(): [number, Buffer] {
    const r = this.#r;
    const kind = r.weighted([
      [60, 5],
      [0, 4],
      [43, 3],
      [51, 1],
      [135, 1],
      [44, 1],
    ]);
    const long = kind !== 44 && r.oneIn(5);
    const rest = Buffer.alloc(long ? 15 : 7);
    if (long) rest[0] = 1;
    if (kind === 43) {
      rest[1] = r.percent(70) ? 4 : 0;
      rest[2] = r.percent(70) ? 0 : 1;
    }
    return [kind, rest];
  }

  // ---- what IP carries ---------------------------------------------------------------------------------------------

  #transport(c: Conversation, v6: boolean, leaves: boolean): { protocol: number; bytes: Buffer } {
    const r = this.#r;
    const ports = leaves ? [c.local, c.remote] : [c.remote, c.local];
    const size = r.oneIn(3) ? r.below(8) * 8 : 24;
    const payload = Buffer.alloc(size, 0x61);
    if (r.oneIn(50))
      return { protocol: r.pick([2, 4, 41, 47, 50, 51, 59, 88, 103, 136, 255]), bytes: Buffer.alloc(40) };
    switch (c.kind) {
      case 'tcp': {
        const flags = r.weighted([
          [0x02, 8],
          [0x12, 6],
          [0x10, 10],
          [0x18, 4],
          [0x11, 4],
          [0x04, 2],
          [0x14, 3],
          [r.below(256), 3],
        ]);
        const words = r.oneIn(6) ? r.below(12) : 5;
        const head = Buffer.concat([u16(ports[0]!), u16(ports[1]!), Buffer.alloc(8), Buffer.from([words << 4, flags])]);
        return { protocol: 6, bytes: Buffer.concat([head, Buffer.alloc(6), payload]) };
      }
      case 'udp': {
        const length = r.oneIn(20) ? r.below(60) : 8 + size;
        return { protocol: 17, bytes: Buffer.concat([u16(ports[0]!), u16(ports[1]!), u16(length), u16(0), payload]) };
      }
      case 'sctp': {
        const type = r.percent(90) ? r.pick([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 64]) : r.below(256);
        const tag = (type === 1) !== r.oneIn(20) ? 0 : 1 + r.below(1000);
        const length = r.oneIn(12) ? r.below(40) : 4 + size;
        const chunk = Buffer.concat([Buffer.from([type, 0]), u16(length), payload]);
        const head = Buffer.concat([u16(ports[0]!), u16(ports[1]!), u16(0), u16(tag), Buffer.alloc(4)]);
        return { protocol: 132, bytes: Buffer.concat([head, chunk]) };
      }
      case 'echo': {
        // Either side may have asked.
        const asks = leaves !== (c.local % 2 === 1);
        const wrong = r.oneIn(10);
        const [request, reply] = v6 ? [128, 129] : [8, 0];
        const type = r.oneIn(15) ? r.below(256) : asks !== wrong ? request : reply;
        const bytes = Buffer.concat([Buffer.from([type, 0, 0, 0]), u16(c.id), u16(1), payload]);
        return { protocol: v6 !== r.oneIn(60) ? 58 : 1, bytes };
      }
    }
  }

  #error(c: Conversation, addresses: readonly [Buffer, Buffer], leaves: boolean): Buffer {
    const r = this.#r;
    const v6 = c.family === 1;
    const other = r.oneIn(6) ? this.#conversation() : c;
    const same = other.family === c.family ? other : c;
    // What the error's receiver sent.
    const turned = r.oneIn(10) ? addresses : ([addresses[1], addresses[0]] as const);
    const quotedLeaves = r.oneIn(10) ? leaves : !leaves;
    const quoted = this.#ip(turned, this.#transport(same, v6, quotedLeaves), { id: same.id });
    const part = r.oneIn(5) ? quoted.subarray(0, r.below(quoted.length)) : quoted;
    const type = v6 ? 1 + r.below(4) : r.pick([3, 11, 12]);
    const bytes = Buffer.concat([Buffer.from([type, r.below(5), 0, 0, 0, 0, 5, 0]), part]);
    // From the other side, or from somewhere on the way.
    const [source, destination] = addresses;
    const from =
      !leaves && r.percent(30) ? this.#address(r.pick(['H', 'W', 'B', 'M', 'N'] as const), c.family) : source;
    return this.#ip([from, destination], { protocol: v6 ? 58 : 1, bytes }, {});
  }

  #neighbour(addresses: readonly [Buffer, Buffer]): Buffer {
    const r = this.#r;
    const type = r.weighted([
      [135, 5],
      [136, 5],
      [133, 1],
      [134, 1],
      [143, 1],
      [130, 1],
    ]);
    const target = this.#address(r.pick(['A', 'A', 'H', 'B', 'R'] as const), 1);
    const bytes = Buffer.concat([Buffer.from([type, r.oneIn(15) ? 1 : 0, 0, 0, 0, 0, 0, 0]), target]);
    const source = r.weighted([
      [addresses[0], 5],
      [Buffer.from(LINK_LOCAL, 'hex'), 2],
      [Buffer.alloc(16), 2],
    ]);
    const destination = r.weighted([
      [addresses[1], 4],
      [Buffer.from('ff0200000000000000000001ff00000a', 'hex'), 3],
      [Buffer.from(LINK_LOCAL, 'hex'), 2],
    ]);
    return this.#ip([source, destination], { protocol: 58, bytes }, { ttl: r.oneIn(10) ? 64 : 255 });
  }

  #arp([source, destination]: readonly [Buffer, Buffer]): Buffer {
    const r = this.#r;
    const operation = r.oneIn(12) ? r.below(6) : 1 + r.below(2);
    const sender = r.oneIn(8) ? Buffer.alloc(4) : source;
    const mac = Buffer.from(r.oneIn(10) ? '02000000000b' : '02000000000a', 'hex');
    const head = Buffer.from('00010800060400', 'hex');
    return Buffer.concat([head, Buffer.from([operation]), mac, sender, Buffer.alloc(6), destination, Buffer.alloc(18)]);
  }

  // ---- damage ------------------------------------------------------------------------------------------------------

  #damaged(packet: Buffer): Buffer {
    const r = this.#r;
    let bytes = Buffer.from(packet);
    for (let n = 1 + r.below(3); n > 0 && bytes.length > 0; n--) {
      const at = r.below(Math.min(bytes.length, r.oneIn(3) ? 120 : 44));
      switch (r.below(7)) {
        case 0:
          bytes[at] = r.below(256);
          break;
        case 1:
          bytes[at]! ^= 1 << r.below(8);
          break;
        case 2:
          bytes[at] = r.pick([0, 1, 6, 17, 43, 44, 58, 60, 127, 128, 132, 255]);
          break;
        case 3:
          bytes = bytes.subarray(0, r.below(bytes.length + 1));
          break;
        case 4:
          bytes = Buffer.concat([bytes, Buffer.alloc(r.below(64), r.below(256))]);
          break;
        case 5:
          // A length that is a little off.
          if (at + 1 < bytes.length) bytes.writeUInt16BE((bytes.readUInt16BE(at) + r.below(17) - 8) & 0xffff, at);
          break;
        default: {
          const lengthAt = bytes[0]! >> 4 === 4 ? 2 : 4;
          if (bytes.length > 6) bytes.writeUInt16BE(r.below(bytes.length + 8), lengthAt);
        }
      }
    }
    return bytes;
  }
}

const LINK_LOCAL = 'fe800000000000000000000000000001';
const ODD_V6 = [
  LINK_LOCAL,
  '00000000000000000000000000000000',
  'ff020000000000000000000000010002',
  'ff020000000000000000000000000001',
  '00000000000000000000ffff0800010a',
];

function u16(value: number): Buffer {
  const out = Buffer.alloc(2);
  out.writeUInt16BE(value & 0xffff);
  return out;
}
