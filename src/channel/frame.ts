/** Frames on the wire: u32 length of what follows (big endian, 64 KiB at most), u8 type, protobuf. */
import { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';

/** Of type and body together. */
export const MAX_FRAME_OCTETS = 65_536;
const HEADER_OCTETS = 4;

const knownTypes: ReadonlySet<number> = new Set(Object.values(FrameType).filter((type) => type > 0));

export interface Frame {
  readonly type: FrameType;
  readonly body: Buffer;
}

/** undefined: the body does not fit into a frame. */
export function encodeFrame(type: FrameType, body: Uint8Array): Buffer | undefined {
  const length = 1 + body.length;
  if (length > MAX_FRAME_OCTETS) return undefined;
  const frame = Buffer.allocUnsafe(HEADER_OCTETS + length);
  frame.writeUInt32BE(length, 0);
  frame[HEADER_OCTETS] = type;
  frame.set(body, HEADER_OCTETS + 1);
  return frame;
}

/**
 * Cuts a stream into frames. Copies each octet once however small the pieces are, and never holds more than one
 * unfinished frame and the last piece.
 */
export class FrameReader {
  #chunk: Buffer = Buffer.alloc(0);
  #at = 0;
  readonly #header = Buffer.alloc(HEADER_OCTETS);
  #headerFill = 0;
  #payload: Buffer | undefined;
  #payloadFill = 0;

  /** The next piece of the stream. */
  feed(chunk: Buffer): void {
    const rest = this.#chunk.subarray(this.#at);
    this.#chunk = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    this.#at = 0;
  }

  /**
   * The next whole frame, or undefined when more octets are needed. Refusals: PEER_FRAME_TOO_LARGE before anything of
   * it is stored, PEER_FRAME_MALFORMED for an empty frame, PEER_FRAME_UNKNOWN for a type this build does not know.
   */
  next(): Result<Frame, ReasonCode> | undefined {
    if (this.#payload === undefined) {
      this.#headerFill += this.#take(this.#header, this.#headerFill);
      if (this.#headerFill < HEADER_OCTETS) return undefined;
      const length = this.#header.readUInt32BE(0);
      if (length > MAX_FRAME_OCTETS) return err('PEER_FRAME_TOO_LARGE');
      if (length === 0) return err('PEER_FRAME_MALFORMED');
      this.#payload = Buffer.allocUnsafeSlow(length);
      this.#payloadFill = 0;
    }
    const payload = this.#payload;
    this.#payloadFill += this.#take(payload, this.#payloadFill);
    if (this.#payloadFill < payload.length) return undefined;
    this.#payload = undefined;
    this.#headerFill = 0;
    const type = payload[0]!;
    if (!knownTypes.has(type)) return err('PEER_FRAME_UNKNOWN');
    return ok({ type: type as FrameType, body: payload.subarray(1) });
  }

  #take(target: Buffer, from: number): number {
    const n = this.#chunk.copy(target, from, this.#at);
    this.#at += n;
    return n;
  }
}
