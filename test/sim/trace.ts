/**
 * What one node did, in the words of the model (test/model/README.md). What leases and fences do, the product says itself by its `trace`
 * option; machines, agents, channels and packets are said here. Notes beside them are for people: they have no `ev`.
 */
import { FrameType, ResetAck } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { VouchTrace } from '../../src/auth/vouch-trace.ts';
import { addressFromBytes } from '../../src/model/address.ts';
import type { AddressEntry, EndpointAttachment } from '../../src/model/datapath.ts';
import { type IpAddress, LOCAL_NODE, type NodeId } from '../../src/model/ids.ts';
import type { Machine } from './machine.ts';
import type { ChannelEnd } from './network.ts';
import type { Packet } from './packet.ts';

type Fields = Readonly<Record<string, unknown>>;

const FRAME_NAMES = new Map<number, string>(Object.entries(FrameType).map(([name, type]) => [type, name]));

export class NodeTrace {
  readonly #machine: Machine;

  /** By link: what the last RESET_ACK's frames named. */
  readonly #kept = new Map<string, { readonly ip: IpAddress; readonly generation: bigint }[]>();

  readonly #closedUnopened = new Set<bigint>();

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  event(ev: string, fields: Fields) {
    const { world, name } = this.#machine;
    world.transition(ev);
    if (world.recording) world.record({ ev, node: name, t: this.#machine.traceMs(), ...fields });
  }

  /** Of the product's own words: nodes by name, channels by their link, times as `t`. */
  vouches(): VouchTrace {
    const { world } = this.#machine;
    return (event) => {
      if (event.ev === 'grant')
        for (const { ip } of event.vouches) world.vouched(this.#machine, world.nodeName(event.peer), ip);
      if (event.ev === 'renew-granted') world.vouched(this.#machine, world.nodeName(event.peer), '*');
      if (!world.recording) return world.transition(event.ev);
      if (event.ev === 'close') return;
      if (event.ev === 'born' && !event.continues) this.#closeUnopened(event.ip);
      const fields: Record<string, unknown> = { ...event };
      delete fields.ev;
      if ('peer' in event) fields.peer = world.nodeName(event.peer);
      if ('channel' in event) fields.channel = event.channel.slice(0, -1);
      if ('nonce' in event) fields.nonce = world.nonce(event.nonce);
      if (event.ev === 'reset-ack' || event.ev === 'reset-acked')
        fields.kept = this.#kept.get(`${event.ev} ${fields.channel}`) ?? [];
      if ('leaseEndNs' in event) {
        delete fields.leaseEndNs;
        fields.leaseEnd = this.#machine.traceMsOf(event.leaseEndNs);
      }
      this.event(event.ev, fields);
    };
  }

  channelOpen(end: ChannelEnd) {
    this.event('channel-open', { peer: end.peer.name, channel: end.link.id, incarnation: end.peer.incarnation });
  }

  channelClose(end: ChannelEnd) {
    this.event('channel-close', { peer: end.peer.name, channel: end.link.id, incarnation: end.peer.incarnation });
  }

  send(packet: Packet, node: NodeId) {
    const { generation } = packet;
    this.event('send', { packet: packet.id, ip: packet.from, generation, peer: this.#peer(node), to: packet.to });
  }

  take(packet: Packet, peer: string, identity: number) {
    this.event('take', { packet: packet.id, peer, ip: packet.from, identity, to: packet.to });
  }

  frameSent(end: ChannelEnd, type: FrameType, body: Buffer) {
    if (type === FrameType.FRAME_TYPE_RESET_ACK) this.#keep(`reset-ack ${end.link.id}`, body);
    const name = FRAME_NAMES.get(type) ?? `${type}`;
    this.#machine.world.transition(`sent ${name}`);
    this.#note('sent', { frame: name, peer: end.peer.name, channel: end.link.id });
  }

  frameTaken(end: ChannelEnd, type: FrameType, body: Buffer) {
    if (type === FrameType.FRAME_TYPE_RESET_ACK) this.#keep(`reset-acked ${end.link.id}`, body);
    this.#note('taken', { frame: FRAME_NAMES.get(type), peer: end.peer.name, channel: end.link.id });
  }

  opened({ addresses, generation, endpoint }: EndpointAttachment) {
    const fences = [...(this.#machine.kernel.memory.fences.get(endpoint) ?? [])].map((node) => this.#peer(node));
    this.#machine.world.transition(fences.length > 0 ? 'kernel: opened with fences' : 'kernel: opened');
    this.#note('kernel: opened', { addresses, generation, fences });
  }

  /** One that an earlier agent had not opened is born anew, on the same interface. */
  #closeUnopened(ip: IpAddress) {
    for (const { addresses, open, generation } of this.#machine.kernel.memory.endpoints.values()) {
      if (open || !addresses.includes(ip) || this.#closedUnopened.has(generation)) continue;
      this.#closedUnopened.add(generation);
      this.event('close', { ip, generation });
    }
  }

  /** Said here: an agent does not know of those that ended before it. */
  closed({ addresses, generation }: EndpointAttachment) {
    this.#machine.world.transition('kernel: closed');
    if (this.#closedUnopened.delete(generation)) return;
    for (const ip of addresses) this.event('close', { ip, generation });
    this.#note('kernel: closed', { addresses, generation });
  }

  fenced(endpoint: number, nodes: readonly NodeId[]) {
    if (nodes.length === 0) return;
    this.#machine.world.transition('kernel: fence closed');
    this.#note('kernel: fenced', { endpoint, nodes: nodes.map((node) => this.#peer(node)) });
  }

  unfenced(endpoint: number, nodes: readonly NodeId[]) {
    if (nodes.length === 0) return;
    this.#machine.world.transition('kernel: fence opened');
    this.#note('kernel: unfenced', { endpoint, nodes: nodes.map((node) => this.#peer(node)) });
  }

  applied(before: AddressEntry | undefined, entry: AddressEntry) {
    if (entry.node === LOCAL_NODE) return;
    const isRenewal = before?.node === entry.node && before.generation === entry.generation;
    this.#machine.world.transition(isRenewal ? 'kernel: lease renewed' : 'kernel: vouch written');
    const { address, identity, generation, incarnation, node, leaseEndNs } = entry;
    this.#note(isRenewal ? 'kernel: renewed' : 'kernel: vouch', {
      address,
      identity,
      peer: this.#peer(node),
      incarnation,
      generation,
      leaseEnd: this.#machine.traceMsOf(leaseEndNs ?? 0n),
    });
  }

  deleted(address: IpAddress) {
    this.#machine.world.transition('kernel: vouch deleted');
    this.#note('kernel: deleted', { address });
  }

  tunnelAllow(address: IpAddress, key: string) {
    const peer = this.#machine.world.nameOfKey(key);
    if (peer !== '') this.#note('device: allowed', { address, peer });
  }

  tunnelDisallow(address: IpAddress, key: string) {
    const peer = this.#machine.world.nameOfKey(key);
    if (peer !== '') this.#note('device: no longer allowed', { address, peer });
  }

  sessionDrop(key: string) {
    this.#machine.world.transition('device: sessions ended');
    this.#note('device: sessions ended', { peer: this.#machine.world.nameOfKey(key) });
  }

  #keep(where: string, body: Buffer) {
    if (!this.#machine.world.recording) return;
    const kept = this.#kept.get(where) ?? [];
    for (const { address, generation } of ResetAck.decode(body).kept)
      kept.push({ ip: addressFromBytes(address), generation });
    this.#kept.set(where, kept);
  }

  #peer(node: NodeId): string {
    return this.#machine.world.nodeName(node);
  }

  #note(what: string, fields: Fields) {
    this.#machine.world.note(this.#machine.name, what, fields);
  }
}
