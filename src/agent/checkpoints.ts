/**
 * The audit log's checkpoints, sent to where this node cannot reach them again: a log that was later set back as a whole no
 * longer agrees with what the identity server keeps, and the server refuses and reports it.
 */
import type { AuditLog } from '../audit/log.ts';
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ServerClient } from './server-client/client.ts';
import { ServerError } from './server-client/transport.ts';

const INTERVAL_MS = 30_000;

export interface CheckpointSender {
  /** Sends the present checkpoint; resolves also when that failed. */
  send(): Promise<void>;
  close(): void;
}

export function startCheckpoints(
  auditLog: AuditLog,
  server: Pick<ServerClient, 'putCheckpoint'>,
  log: Logger,
): CheckpointSender {
  const send = async (): Promise<void> => {
    try {
      const { note } = await auditLog.checkpoint();
      await server.putCheckpoint(Buffer.from(note));
    } catch (thrown) {
      if (thrown instanceof ServerError && thrown.reason === 'AUDIT_ROLLED_BACK') {
        log.error(
          'the identity server keeps a longer audit log of this node than there is: it was set back or replaced',
        );
      } else
        log.debug({ problem: asError(thrown).message }, 'the checkpoint could not be sent; the next one covers it');
    }
  };
  const timer = setInterval(() => void send(), INTERVAL_MS);
  timer.unref();
  return { send, close: () => clearInterval(timer) };
}
