/** Checkpoints of the agents' audit logs, kept where an agent cannot reach them: a log that shrinks or changes its past shows. */
import { status } from '@grpc/grpc-js';
import { parseCheckpoint } from '../src/audit/note.ts';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError } from '../src/base/errors.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { Refusal } from './refusal.ts';
import type { NodeRecord, Store } from './store.ts';

const MAX_BYTES = 4096;

export interface CheckpointOptions {
  readonly store: Store;
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly audit: AuditSink;
}

/** @throws CountersignError bad-input, Refusal AUDIT_ROLLED_BACK: the earlier one is kept. */
export function putCheckpoint(options: CheckpointOptions, node: NodeRecord, note: Buffer): void {
  const { store, trustDomain, clock, audit } = options;
  const text = note.length <= MAX_BYTES ? note.toString('utf8') : '';
  const split = text.indexOf('\n\n');
  const checkpoint = parseCheckpoint(text.slice(0, split + 1));
  if (!checkpoint.ok) throw new CountersignError('bad-input', `checkpoint: ${checkpoint.error}`);
  const { origin, size, root } = checkpoint.value;
  if (origin !== `${trustDomain}/node/${node.name}`) {
    throw new CountersignError('bad-input', 'checkpoint: its origin is not the calling node');
  }
  const known = store.checkpoint(node.name);
  const rootText = root.toString('base64');
  if (known !== undefined && (size < known.size || (size === known.size && rootText !== known.root))) {
    const detail = { size, earlier: known.size };
    audit.emit({ kind: 'peer.refused', reason: 'AUDIT_ROLLED_BACK', source: { node: node.name }, detail });
    throw new Refusal('AUDIT_ROLLED_BACK', status.FAILED_PRECONDITION);
  }
  store.putCheckpoint({ node: node.name, size, root: rootText, text: note, receivedAtMs: clock.nowMs() });
}
