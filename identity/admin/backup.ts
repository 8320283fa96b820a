/** The administrator's backup: one archive as a stream, for the role admin, as it holds the authority's keys. */
import { once } from 'node:events';
import type { ServerWritableStream } from '@grpc/grpc-js';
import type { BackupChunk, BackupRequest } from '../../proto/gen/countersign/admin/v1/admin.ts';
import { type BackupSources, makeBackup } from '../backup/make.ts';
import { toServiceError } from '../refusal.ts';
import { type AdminContext, permitted } from './service.ts';

/** gRPC messages of this size at most. */
const CHUNK_BYTES = 256 * 1024;

export function backupHandler(context: AdminContext, sources: BackupSources) {
  return (call: ServerWritableStream<BackupRequest, BackupChunk>): void => {
    const serve = async () => {
      const actor = permitted(context, call, 'admin');
      const ended = new AbortController();
      call.once('cancelled', () => ended.abort());
      call.once('close', () => ended.abort());
      const header = await makeBackup(sources, async (bytes) => {
        for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
          ended.signal.throwIfAborted();
          const data = bytes.subarray(at, at + CHUNK_BYTES);
          if (!call.write({ data })) await once(call, 'drain', { signal: ended.signal });
        }
      });
      const bytes = header.parts.reduce((sum, { size }) => sum + size, 0);
      const detail = { action: 'backup', parts: header.parts.length, bytes };
      context.audit.emit({ kind: 'admin.action', actor: actor.name, detail });
      call.end();
    };
    serve().catch((thrown) => call.emit('error', toServiceError(thrown, context.log)));
  };
}
