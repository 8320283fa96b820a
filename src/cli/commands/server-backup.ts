/** `countersign server backup` and `restore`: the server's state as one file, and back. */
import { rmSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { ServiceError } from '@grpc/grpc-js';
import type { Command } from 'commander';
import type { BackupChunk } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { asError, CountersignError } from '../../base/errors.ts';
import { fromGrpc, serverClient } from '../admin-client.ts';
import { type CommonOptions, onServer, withOutput } from '../context.ts';
import { lines, printJson } from '../output.ts';

const SERVER_CONFIG = '/etc/countersign/server.yaml';

export function addServerBackup(server: Command): void {
  onServer(
    server
      .command('backup <file>')
      .description(
        'write a copy of all that the running server must not forget, its private keys included, to a new file',
      ),
  ).action(async (path: string, options: CommonOptions) => {
    const file = await open(path, 'wx', 0o600).catch((thrown: NodeJS.ErrnoException) => {
      const fix = thrown.code === 'EEXIST' ? 'it is there already; name a new file' : `cannot be made (${thrown.code})`;
      throw new CountersignError('bad-input', `${path}: ${fix}`, { cause: thrown });
    });
    try {
      const bytes = await receive(options, file);
      await file.sync();
      const done = { file: path, bytes };
      if (options.output === 'json') printJson(done);
      else console.log(lines(done));
    } catch (thrown) {
      rmSync(path, { force: true });
      throw thrown;
    } finally {
      await file.close();
    }
  });
  withOutput(
    server
      .command('restore <file>')
      .description('put a backup in the place of a stopped server’s state; what was there is moved aside')
      .option('--config <file>', "the server's ServerConfig file", SERVER_CONFIG)
      .option('--force', 'also where the data directory holds a state already'),
  ).action(async (path: string, options: { config: string; force?: boolean; output: string }) => {
    const { restoreServer } = await import('../../../identity/main.ts');
    const { createdAt, movedTo, keys } = await restoreServer(options.config, path, options.force === true);
    const done = { restored: path, createdAt, keys, ...(movedTo === undefined ? {} : { movedTo }) };
    if (options.output === 'json') printJson(done);
    else {
      console.log(lines(done));
      console.log(
        `What was revoked, banned or registered after ${createdAt} is not in it: do it again once the server runs.`,
      );
    }
  });
}

async function receive(options: CommonOptions, file: FileHandle): Promise<number> {
  const client = serverClient(options);
  let bytes = 0;
  try {
    for await (const { data } of client.backup({}) as AsyncIterable<BackupChunk>) {
      writeFileSync(file.fd, data);
      bytes += data.length;
    }
  } catch (thrown) {
    const error = asError(thrown);
    throw 'details' in error ? fromGrpc(error as ServiceError) : error;
  } finally {
    client.close();
  }
  return bytes;
}
