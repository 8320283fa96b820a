/**
 * What one node did, in the words of the model (test/model/trace.ts reads them): one JSON object for each event, recorded at the
 * boundary (tables, frames, packets), not by the code that is tried.
 */
import {
  FrameType,
  Renew,
  RenewReply,
  Reset,
  ResetAck,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import { addressFromBytes } from '../../src/model/address.ts';
import type { AddressEntry, EndpointAttachment } from '../../src/model/datapath.ts';
import { type IpAddress, LOCAL_NODE, type NodeId } from '../../src/model/ids.ts';
import type { Machine } from './machine.ts';
import type { ChannelEnd } from './network.ts';
import type { Packet } from './packet.ts';

type Fields = Readonly<Record<string, unknown>>;

export class NodeTrace {
  readonly #machine: Machine;
  /** Nonces of requests, to their replies' entries. */
  readonly #applied = new Map<string, string>();

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  event(ev: string, fields: Fields) {
    const { world, name } = this.#machine;
    world.transition(ev);
    if (!world.recording) return;
    world.record({ ev, node: name, t: Math.round(this.#machine.bootMs() * 1000) / 1000, ...fields });
  }

  channelOpen(end: ChannelEnd) {
    this.event('channel-open', {
      peer: end.peer.name,
      channel: end.link.id,
      incarnation: String(end.peer.incarnation),
    });
  }

  channelClose(end: ChannelEnd) {
    this.event('channel-close', {
      peer: end.peer.name,
      channel: end.link.id,
      incarnation: String(end.peer.incarnation),
    });
  }

  opened(endpoint: EndpointAttachment) {
    const { memory } = this.#machine.kernel;
    const fenced = memory.fences.get(endpoint.endpoint) ?? new Set<NodeId>();
    const { world } = this.#machine;
    for (const ip of endpoint.addresses) {
      const generation = String(endpoint.generation);
      if (fenced.size === 0) this.event('open', { ip, generation, peer: '*' });
      else {
        world.transition('open with fences');
        for (const peer of world.machineNames(this.#machine.name))
          if (!fenced.has(world.nodeInfo(peer).id)) this.event('open', { ip, generation, peer });
      }
    }
  }

  fenced(endpoint: number, nodes: readonly NodeId[]) {
    if (nodes.length > 0) this.#machine.world.transition('fence closed');
    this.#machine.world.note(this.#machine.name, 'fences closed', { endpoint, nodes });
  }

  unfenced(endpoint: number, nodes: readonly NodeId[]) {
    const { world, kernel } = this.#machine;
    if (nodes.length > 0) world.transition('fence opened');
    const attachment = [...kernel.memory.endpoints.values()].find((known) => known.endpoint === endpoint);
    if (attachment === undefined || !attachment.open) return;
    for (const ip of attachment.addresses) {
      for (const node of nodes)
        this.event('open', { ip, generation: String(attachment.generation), peer: world.nodeName(node) });
    }
  }

  closed(endpoint: EndpointAttachment) {
    const generation = String(endpoint.generation);
    for (const ip of endpoint.addresses) {
      this.event('close', { ip, generation });
      this.event('flushed', { ip, generation });
    }
  }

  applied(before: AddressEntry | undefined, entry: AddressEntry) {
    if (entry.node === LOCAL_NODE) return;
    const peer = this.#machine.world.nodeName(entry.node);
    const leaseEnd = Number((entry.leaseEndNs ?? 0n) / 1000n) / 1000;
    const isRenewal =
      before !== undefined &&
      before.node === entry.node &&
      before.incarnation === entry.incarnation &&
      before.generation === entry.generation;
    const nonce = this.#applied.get(`${peer}|${entry.address}`) ?? '';
    if (isRenewal) return this.event('renewed', { peer, ip: entry.address, nonce, leaseEnd });
    this.event('apply', {
      peer,
      ip: entry.address,
      identity: entry.identity,
      incarnation: String(entry.incarnation),
      generation: String(entry.generation),
      leaseEnd,
      nonce,
    });
  }

  deleted(ip: IpAddress) {
    this.event('delete', { ip });
  }

  tunnelAllow(ip: IpAddress, key: string) {
    this.event('tunnel-allow', { ip, peer: this.#machine.world.nameOfKey(key) });
  }

  tunnelDisallow(ip: IpAddress, key: string) {
    const peer = this.#machine.world.nameOfKey(key);
    if (peer !== '') this.event('tunnel-disallow', { ip, peer });
  }

  sessionDrop(key: string) {
    const peer = this.#machine.world.nameOfKey(key);
    if (peer !== '') this.event('session-drop', { peer });
  }

  send(packet: Packet, node: NodeId) {
    this.event('send', { packet: packet.id, ip: packet.from, peer: this.#machine.world.nodeName(node), to: packet.to });
  }

  take(packet: Packet, peer: string, identity: number) {
    this.event('take', { packet: packet.id, peer, ip: packet.from, identity, to: packet.to });
  }

  frameSent(end: ChannelEnd, type: FrameType, body: Buffer) {
    const { world } = this.#machine;
    world.transition(`frame ${type}`);
    if (!world.recording) return;
    const where = { peer: end.peer.name, channel: end.link.id };
    switch (type) {
      case FrameType.FRAME_TYPE_VOUCH_REQUEST: {
        const { nonce, addresses } = VouchRequest.decode(body);
        if (addresses.length === 0) return;
        return this.event('ask', { ...where, nonce: world.nonce(nonce), ips: addresses.map(addressFromBytes) });
      }
      case FrameType.FRAME_TYPE_VOUCH_REPLY: {
        const reply = VouchReply.decode(body);
        return this.event('grant', {
          ...where,
          nonce: world.nonce(reply.nonce),
          leaseMs: reply.vouches[0]?.leaseMs ?? 0,
          vouches: reply.vouches.map((vouch) => ({
            ip: addressFromBytes(vouch.address),
            identity: vouch.securityIdentity,
            generation: String(vouch.generation),
          })),
        });
      }
      case FrameType.FRAME_TYPE_WITHDRAW: {
        const withdraw = Withdraw.decode(body);
        return this.event('withdraw', {
          ...where,
          id: String(withdraw.id),
          version: String(withdraw.id),
          entries: withdraw.addresses.map(({ address, generation }) => ({
            ip: addressFromBytes(address),
            generation: String(generation),
          })),
        });
      }
      case FrameType.FRAME_TYPE_WITHDRAW_ACK:
        return this.event('withdraw-ack', { ...where, id: String(WithdrawAck.decode(body).id) });
      case FrameType.FRAME_TYPE_RESET:
        return this.event('reset', { ...where, incarnation: String(Reset.decode(body).incarnation), keeps: [] });
      case FrameType.FRAME_TYPE_RESET_ACK:
        return this.event('reset-ack', { ...where, incarnation: String(ResetAck.decode(body).incarnation) });
      case FrameType.FRAME_TYPE_RENEW: {
        const renew = Renew.decode(body);
        return this.event('renew', {
          ...where,
          nonce: world.nonce(renew.nonce),
          incarnation: String(renew.incarnation),
          version: String(renew.version),
        });
      }
      case FrameType.FRAME_TYPE_RENEW_REPLY: {
        const reply = RenewReply.decode(body);
        if (!reply.ok) return world.transition('renewal refused');
        return this.event('renew-granted', { ...where, nonce: world.nonce(reply.nonce), leaseMs: reply.leaseMs });
      }
    }
  }

  frameTaken(end: ChannelEnd, type: FrameType, body: Buffer) {
    const { world } = this.#machine;
    if (!world.recording) return;
    const where = { peer: end.peer.name, channel: end.link.id };
    switch (type) {
      case FrameType.FRAME_TYPE_VOUCH_REPLY: {
        const reply = VouchReply.decode(body);
        for (const { address } of reply.vouches)
          this.#applied.set(`${end.peer.name}|${addressFromBytes(address)}`, world.nonce(reply.nonce));
        return;
      }
      case FrameType.FRAME_TYPE_WITHDRAW_ACK:
        return this.event('withdraw-acked', { ...where, id: String(WithdrawAck.decode(body).id) });
      case FrameType.FRAME_TYPE_RESET_ACK:
        return this.event('reset-acked', { ...where, incarnation: String(ResetAck.decode(body).incarnation) });
    }
  }
}
