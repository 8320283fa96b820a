/**
 * What leases and fences do, step by step, in the words of the model (test/model): a run of the real code is checked against it. Said when the
 * effect is in force, or when a frame is handed to the channel or taken from it.
 */
import type { IpAddress, NodeId, SecurityIdentity } from '../model/ids.ts';

interface Claimed {
  readonly ip: IpAddress;
  readonly generation: bigint;
}

interface OnChannel {
  readonly peer: NodeId;
  /** The channel's own id on this side. */
  readonly channel: string;
}

export type VouchEvent =
  | {
      readonly ev: 'born';
      readonly ip: IpAddress;
      readonly endpoint: number;
      readonly identity: SecurityIdentity;
      readonly generation: bigint;
      readonly continues: boolean;
    }
  | { readonly ev: 'open'; readonly ip: IpAddress; readonly generation: bigint; readonly peer: NodeId }
  | ({ readonly ev: 'close' | 'flushed' } & Claimed)
  | ({ readonly ev: 'ask'; readonly nonce: string; readonly ips: readonly IpAddress[] } & OnChannel)
  | ({
      readonly ev: 'grant';
      readonly nonce: string;
      readonly leaseMs: number;
      readonly vouches: readonly (Claimed & { readonly identity: SecurityIdentity })[];
    } & OnChannel)
  | {
      readonly ev: 'apply';
      readonly peer: NodeId;
      readonly ip: IpAddress;
      readonly identity: SecurityIdentity;
      readonly incarnation: bigint;
      readonly generation: bigint;
      readonly leaseEndNs: bigint;
      readonly nonce: string;
    }
  | { readonly ev: 'delete'; readonly ip: IpAddress }
  | { readonly ev: 'tunnel-allow' | 'tunnel-disallow'; readonly ip: IpAddress; readonly peer: NodeId }
  | { readonly ev: 'session-drop'; readonly peer: NodeId }
  | ({
      readonly ev: 'withdraw';
      readonly id: bigint;
      readonly version: bigint;
      readonly entries: readonly Claimed[];
    } & OnChannel)
  | ({ readonly ev: 'withdraw-ack' | 'withdraw-acked'; readonly id: bigint } & OnChannel)
  | ({ readonly ev: 'reset'; readonly incarnation: bigint; readonly keeps: readonly Claimed[] } & OnChannel)
  | ({ readonly ev: 'reset-ack' | 'reset-acked'; readonly incarnation: bigint } & OnChannel)
  | ({
      readonly ev: 'renew';
      readonly nonce: string;
      readonly incarnation: bigint;
      readonly version: bigint;
    } & OnChannel)
  | ({ readonly ev: 'renew-granted'; readonly nonce: string; readonly leaseMs: number } & OnChannel)
  | { readonly ev: 'renewed'; readonly peer: NodeId; readonly nonce: string; readonly leaseEndNs: bigint };

/** undefined in production. */
export type VouchTrace = ((event: VouchEvent) => void) | undefined;
