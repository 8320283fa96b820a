/** What an administrator asks of the identity server: its state, tokens, SVIDs; nodes and entries in files of their own. */
import type { Command } from 'commander';
import type { CreateJoinTokenReply, RevokeSvidReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { call, serverClient } from '../admin-client.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { printJson } from '../output.ts';
import { ask, print, printRows, type Row } from '../server-replies.ts';
import { addEntryCommands } from './entry.ts';
import { addNodeCommands } from './node.ts';
import { addServerRun } from './run.ts';
import { addServerBackup } from './server-backup.ts';
import { addSvidOutputs } from './svid.ts';

export function addServerCommands(program: Command): void {
  const server = program.command('server').description('the identity server');
  addServerRun(server);
  addServerBackup(server);
  onServer(server.command('status').description('what the server knows and serves')).action(
    async (options: CommonOptions) => {
      print(options, await ask<Row>(options, (client, done) => client.getStatus({}, done)));
    },
  );

  const token = program.command('token').description('one-time tokens with which nodes join');
  onServer(
    token.command('create').description('make a join token for one node; it is printed once and stored only as a hash'),
  )
    .requiredOption('--node <name>', 'the node that may use it')
    .option('--ttl <seconds>', 'how long it may be used', '600')
    .action(async (options: CommonOptions & { node: string; ttl: string }) => {
      const ttlSeconds = Number(options.ttl);
      if (!Number.isInteger(ttlSeconds) || ttlSeconds < 1)
        throw new CountersignError('bad-input', `--ttl ${options.ttl}: give whole seconds, 1 or more`);
      const client = serverClient(options);
      const reply = await call<CreateJoinTokenReply>(client, (done) =>
        client.createJoinToken({ nodeName: options.node, ttlSeconds }, done),
      );
      if (options.output === 'json')
        printJson({ token: reply.token, expiresAt: new Date(Number(reply.expiresAt) * 1000).toISOString() });
      else console.log(reply.token);
    });

  addNodeCommands(program);
  addEntryCommands(program);

  const svid = program.command('svid').description('SVIDs: fetch, list, revoke');
  onServer(svid.command('list').description('what was issued and still lives')).action(
    async (options: CommonOptions) => {
      const reply = await ask<{ svids: Row[] }>(options, (client, done) => client.listSvids({}, done));
      printRows(options, reply, reply.svids, ['serial', 'spiffeId', 'node', 'notAfter', 'revoked'], 'no svids');
    },
  );
  onServer(svid.command('revoke').description('take SVIDs back; returns when every node has it in force in its kernel'))
    .option('--spiffe-id <id>', 'every SVID of this SPIFFE ID issued until now')
    .option('--serial <hex>', 'this one certificate')
    .option('--node <name>', "the node's SVIDs and all that are bound to it")
    .option('--reason <text>', 'for the audit log', '')
    .option('--wait <ms>', 'how long to wait for the nodes', '5000')
    .action(
      async (
        options: CommonOptions & { spiffeId?: string; serial?: string; node?: string; reason: string; wait: string },
      ) => {
        const given = (
          [
            ['spiffeId', options.spiffeId],
            ['serial', options.serial],
            ['node', options.node],
          ] as const
        ).flatMap(([$case, value]) => (value === undefined ? [] : [{ $case, value }]));
        const [what, second] = given;
        if (what === undefined || second !== undefined)
          throw new CountersignError('bad-input', 'name exactly one of --spiffe-id, --serial, --node');
        const client = serverClient(options);
        const reply = await call<RevokeSvidReply>(client, (done) =>
          client.revokeSvid(
            {
              what,
              reason: options.reason,
              waitMs: Number(options.wait),
            },
            done,
          ),
        );
        const { inForce, missing, inForceMs } = reply;
        if (options.output === 'json') printJson({ sequence: Number(reply.sequence), inForce, missing, inForceMs });
        else {
          console.log(`revoked; in force on ${inForce.join(', ') || 'no node'} after ${inForceMs.toFixed(1)} ms`);
          if (missing.length > 0)
            console.log(`not confirmed by ${missing.join(', ')}: its proofs there end with the lease`);
        }
        if (missing.length > 0) process.exitCode = EXIT.partly;
      },
    );
  addSvidOutputs(svid);
}
