/**
 * A node that shows and says what it likes, to a node of the real code: manager, certificates, authenticators, peer channels and TLS, on real
 * sockets and in real time. The rogue has a node SVID of its own and TLS from the test; its messages come from the second reading of RFC 9261.
 */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { TLSSocket } from 'node:tls';
import {
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
  Renew,
  RenewReply,
  Reset,
  ResetAck,
  type Vouch,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { createLogger } from '../../../src/base/log.ts';
import { systemTimers } from '../../../src/base/timers.ts';
import { type StartedPeerChannels, startPeerChannels } from '../../../src/channel/peer-channels.ts';
import { addressFromBytes, addressWireBytes } from '../../../src/model/address.ts';
import type { NodeInfo, Svid } from '../../../src/model/identity.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { type RawPeer, rawTls } from '../channel/raw-peer.ts';
import * as reading from '../rfc9261/reading.ts';
import { DOMAIN, type SimNode, SimTime, type Workload, World } from './world.ts';

/** The clock of the machine, with a hand to move it on. */
export class RealTime extends SimTime {
  #aheadMs = 0;

  override nowMs(): number {
    return Date.now() + this.#aheadMs;
  }

  override bootNs(): bigint {
    return process.hrtime.bigint() + BigInt(this.#aheadMs) * 1_000_000n;
  }

  override skip(ms: number): void {
    this.#aheadMs += ms;
  }
}

export async function nodeSvid(world: World, info: NodeInfo): Promise<Svid> {
  const privateKey = generateKey();
  const { name, incarnation, spiffeId } = info;
  const csr = createCsr(privateKey);
  const issued = await world.ca.issueNodeSvid({ csr, name, incarnation, requester: 'test' });
  if (!issued.ok) throw new Error(issued.error);
  return { spiffeId, chain: issued.value.chain, privateKey, notAfterMs: issued.value.notAfterMs };
}

/** Node `a` of a world in real time, behind real peer channels. */
export async function startVictim(world: World, node: SimNode): Promise<StartedPeerChannels> {
  const svid = await nodeSvid(world, node.info);
  const log = createLogger('test', 'silent');
  const channels = await startPeerChannels({
    self: () => ({ info: node.info, svid }),
    nodes: world.nodeTable,
    bundles: { bundleOf: (domain) => world.bundles.get(domain) },
    revocations: { isRevoked: (subject) => world.ca.isRevoked(subject) },
    trustDomain: DOMAIN,
    listen: [{ address: '127.0.0.1', port: 0 }],
    limits: { acceptsPerSecond: 1_000, acceptBurst: 1_000, handshakesPerSecond: 1_000, handshakeBurst: 1_000 },
    clock: world.time,
    audit: { emit: (event) => node.audit.push(event) },
    log,
    staticAddresses: new Map(),
    events: {
      opened: (channel) => node.manager.opened(channel),
      frame: (channel, type, body) => node.manager.frame(channel, type, body),
      closed: (channel, reason) => {
        node.closedChannels.push({ peer: channel.peer.name, reason });
        node.manager.closed(channel, reason);
      },
    },
  });
  node.start({ channels, timers: systemTimers });
  return channels;
}

interface Received {
  readonly type: number;
  readonly body: Buffer;
}

/** What the rogue shows for an identity. */
export interface Shown {
  readonly chain: readonly Buffer[];
  readonly key: Svid['privateKey'];
}

const WAIT_MS = 5_000;
const SCHEMES = reading.signatureAlgorithms([0x0403, 0x0503, 0x0804]);

export class RogueNode {
  readonly peer: RawPeer<TLSSocket>;
  readonly #info: NodeInfo;
  readonly #hosted: readonly Workload[];
  /** An honest one acks what is withdrawn. */
  isHonest = true;
  /** Told of every frame. */
  heard: (frame: Received) => void = () => {};
  /** What it answers to a question in place of the truth. */
  answersWith: ((asked: readonly IpAddress[]) => Vouch[]) | undefined;
  readonly #inbox: Received[] = [];
  readonly #waiting: { readonly types: readonly number[]; readonly resolve: (frame: Received) => void }[] = [];
  #pending = Buffer.alloc(0);
  #exchange = 1n;
  #counter = 0n;

  private constructor(peer: RawPeer<TLSSocket>, info: NodeInfo, hosted: readonly Workload[]) {
    this.peer = peer;
    this.#info = info;
    this.#hosted = hosted;
    peer.socket.on('data', (chunk: Buffer) => this.#read(chunk));
  }

  /** Says hello, lets go of everything, and vouches for `hosted`; resolves when the other side believes that. */
  static async connect(port: number, info: NodeInfo, svid: Svid, hosted: readonly Workload[]): Promise<RogueNode> {
    const rogue = new RogueNode(rawTls(port, svid), info, hosted);
    await once(rogue.peer.socket, 'secureConnect');
    await rogue.next(FrameType.FRAME_TYPE_HELLO);
    rogue.peer.hello(info);
    const { incarnation } = info;
    rogue.send(FrameType.FRAME_TYPE_RESET, Reset.encode({ incarnation, keeps: [], more: false }));
    await rogue.next(FrameType.FRAME_TYPE_RESET_ACK);
    return rogue;
  }

  /** A connection that says nothing: its exporter alone is of use. */
  static async aside(port: number, svid: Svid): Promise<RogueNode> {
    const rogue = new RogueNode(rawTls(port, svid), {} as NodeInfo, []);
    await once(rogue.peer.socket, 'secureConnect');
    return rogue;
  }

  /** Asks who an address is, and names the own ones, so that the other side asks back. */
  async introduce(to: Workload): Promise<void> {
    const own = this.#hosted.map(({ ip }) => addressWireBytes(ip));
    const request = { nonce: randomBytes(16), addresses: [addressWireBytes(to.ip)], own };
    this.send(FrameType.FRAME_TYPE_VOUCH_REQUEST, VouchRequest.encode(request));
    await this.next(FrameType.FRAME_TYPE_VOUCH_REPLY);
  }

  send(type: FrameType, message: { finish(): Uint8Array }): void {
    this.peer.frame(type, message.finish());
  }

  /** The next frame of one of these types. */
  next(...types: FrameType[]): Promise<Received> {
    const at = this.#inbox.findIndex(({ type }) => types.includes(type as FrameType));
    if (at >= 0) return Promise.resolve(this.#inbox.splice(at, 1)[0]!);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no frame of type ${types.join(', ')}`)), WAIT_MS);
      this.#waiting.push({
        types,
        resolve: (frame) => {
          clearTimeout(timer);
          resolve(frame);
        },
      });
    });
  }

  /** A request that was never made before, or is told which number it has. */
  ask(counter = ++this.#counter): Buffer {
    const context = Buffer.alloc(25);
    context[0] = 1;
    context.writeBigUInt64BE(counter, 1);
    randomBytes(16).copy(context, 9);
    return reading.request('client', context, SCHEMES);
  }

  /** An authenticator that answers the other side's request. */
  answer(asked: Buffer, { chain, key }: Shown): Buffer {
    return reading.authenticator({
      socket: this.peer.socket,
      sender: 'client',
      request: asked,
      context: asked.subarray(5, 5 + asked[4]!),
      entries: chain.map((der) => ({ der })),
      key,
      code: 0x0403,
      hash: 'sha256',
    });
  }

  /** Begins an exchange. The other side's request, or its refusal. */
  async begin(local: Workload, remote: Workload, authenticatorRequest = this.ask()) {
    const exchange = this.#exchange;
    this.#exchange += 2n;
    const message = {
      ...{ exchange, localIdentity: local.identity, remoteIdentity: remote.identity, authType: 1 },
      ...{ authenticatorRequest, flow: undefined, localCertificate: Buffer.alloc(0) },
    };
    this.send(FrameType.FRAME_TYPE_PROVE_REQUEST, ProveRequest.encode(message));
    const { type, body } = await this.next(FrameType.FRAME_TYPE_PROVE_CHALLENGE, FrameType.FRAME_TYPE_PROVE_RESULT);
    if (type === FrameType.FRAME_TYPE_PROVE_RESULT) return { exchange, reason: ProveResult.decode(body).reason };
    return { exchange, request: authenticatorRequest, asked: ProveChallenge.decode(body).authenticatorRequest };
  }

  /** Message 3, and what the other side says to it. */
  async conclude(exchange: bigint, authenticator: Buffer): Promise<ProveResult> {
    this.send(FrameType.FRAME_TYPE_PROVE_PROOF, ProveProof.encode({ exchange, authenticator }));
    return ProveResult.decode((await this.next(FrameType.FRAME_TYPE_PROVE_RESULT)).body);
  }

  /** A whole exchange that shows this. Why it was refused; undefined: both sides are proven. */
  async prove(local: Workload, remote: Workload, shown: Shown): Promise<string | undefined> {
    const begun = await this.begin(local, remote);
    if (begun.asked === undefined) return begun.reason;
    const result = await this.conclude(begun.exchange, this.answer(begun.asked, shown));
    if (!result.ok) return result.reason;
    reading.check(this.peer.socket, 'server', begun.request, result.authenticator);
    const yes = { exchange: begun.exchange, ok: true, reason: '', validMs: 60_000n, authenticator: Buffer.alloc(0) };
    this.send(FrameType.FRAME_TYPE_PROVE_RESULT, ProveResult.encode(yes));
    return undefined;
  }

  /** Answers the exchange that the other side begins, with what `make` makes of its request; `theirs`: its proof, and what it answers. */
  async respond(make: (asked: Buffer, theirs: Buffer, mine: Buffer) => Buffer): Promise<ProveResult> {
    const { exchange, authenticatorRequest } = ProveRequest.decode(
      (await this.next(FrameType.FRAME_TYPE_PROVE_REQUEST)).body,
    );
    const mine = this.ask();
    this.send(FrameType.FRAME_TYPE_PROVE_CHALLENGE, ProveChallenge.encode({ exchange, authenticatorRequest: mine }));
    const { authenticator } = ProveProof.decode((await this.next(FrameType.FRAME_TYPE_PROVE_PROOF)).body);
    const shown = make(authenticatorRequest, authenticator, mine);
    const yes = { exchange, ok: true, reason: '', validMs: 60_000n, authenticator: shown };
    this.send(FrameType.FRAME_TYPE_PROVE_RESULT, ProveResult.encode(yes));
    return ProveResult.decode((await this.next(FrameType.FRAME_TYPE_PROVE_RESULT)).body);
  }

  async close(): Promise<void> {
    if (this.peer.closed) return;
    this.peer.socket.destroy();
    await once(this.peer.socket, 'close');
  }

  #read(chunk: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= 5 && this.#pending.length >= 4 + this.#pending.readUInt32BE(0)) {
      const length = this.#pending.readUInt32BE(0);
      const frame = { type: this.#pending[4]!, body: this.#pending.subarray(5, 4 + length) };
      this.#pending = this.#pending.subarray(4 + length);
      this.#take(frame);
    }
  }

  #take(frame: Received): void {
    this.heard(frame);
    if (this.#answersLease(frame)) return;
    const at = this.#waiting.findIndex(({ types }) => types.includes(frame.type));
    if (at < 0) this.#inbox.push(frame);
    else this.#waiting.splice(at, 1)[0]!.resolve(frame);
  }

  /** What keeps a lease and a channel alive is answered as any node would. */
  #answersLease({ type, body }: Received): boolean {
    const { incarnation } = this.#info;
    if (type === FrameType.FRAME_TYPE_RESET) {
      const ack = { incarnation: Reset.decode(body).incarnation, kept: [], more: false, released: false };
      this.send(FrameType.FRAME_TYPE_RESET_ACK, ResetAck.encode(ack));
    } else if (type === FrameType.FRAME_TYPE_VOUCH_REQUEST) {
      const { nonce, addresses } = VouchRequest.decode(body);
      const vouches =
        this.answersWith?.(addresses.map((bytes) => addressFromBytes(bytes))) ??
        this.#hosted.flatMap((workload) => this.#vouchFor(workload, addresses));
      this.send(FrameType.FRAME_TYPE_VOUCH_REPLY, VouchReply.encode({ nonce, incarnation, vouches }));
    } else if (type === FrameType.FRAME_TYPE_RENEW) {
      const { nonce } = Renew.decode(body);
      this.send(FrameType.FRAME_TYPE_RENEW_REPLY, RenewReply.encode({ nonce, ok: true, leaseMs: 30_000 }));
    } else if (type === FrameType.FRAME_TYPE_WITHDRAW && this.isHonest) {
      this.send(FrameType.FRAME_TYPE_WITHDRAW_ACK, WithdrawAck.encode({ id: Withdraw.decode(body).id }));
    } else if (type === FrameType.FRAME_TYPE_PING) this.peer.frame(FrameType.FRAME_TYPE_PONG, body);
    else return false;
    return true;
  }

  #vouchFor({ ip, identity, spiffeId }: Workload, asked: readonly Buffer[]) {
    const address = addressWireBytes(ip);
    const vouch = {
      securityIdentity: identity,
      spiffeId,
      generation: 1n,
      leaseMs: 30_000,
      earlierOwnerMs: 0n,
      ownedMs: 0n,
    };
    return asked.some((one) => address.equals(one)) ? [{ address, ...vouch }] : [];
  }
}

/** A world in real time: `a` is the victim, `b` the name that the rogue has. */
export function realWorld(): Promise<World> {
  return World.create(undefined, new RealTime());
}
