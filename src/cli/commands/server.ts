/** What an administrator asks of the identity server: tokens, nodes, entries, SVIDs. */
import type { Command } from 'commander';
import {
  type CreateJoinTokenReply,
  type JsonReply,
  ListEntriesRequest,
  type RevokeSvidReply,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { call, serverClient } from '../admin-client.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { lines, printJson, table } from '../output.ts';
import { addServerRun } from './run.ts';
import { addServerBackup } from './server-backup.ts';
import { addSvidOutputs } from './svid.ts';

type Row = Record<string, unknown>;

const everything = ListEntriesRequest.create();

const text = (value: unknown): string => {
  if (value === undefined || value === null) return '';
  if (Array.isArray(value)) return value.join(',');
  if (typeof value === 'object')
    return Object.entries(value)
      .map(([k, v]) => `${k}=${String(v)}`)
      .join(',');
  return String(value);
};

function namedPort(text: string) {
  const match = /^([^=]+)=(\d+)(?:\/(TCP|UDP|SCTP))?$/i.exec(text);
  if (match === null) throw new CountersignError('bad-input', `--port ${text}: write it as name=port or name=port/UDP`);
  return { name: match[1], port: Number(match[2]), protocol: (match[3] ?? 'TCP').toUpperCase() };
}

/** A list command over a JSON reply {<name>: [...]}: its columns are field names. */
function addList(
  noun: Command,
  description: string,
  method: 'listNodes' | 'listEntries' | 'listSvids',
  name: string,
  columns: readonly string[],
): void {
  onServer(noun.command('list').description(description)).action(async (options: CommonOptions) => {
    const client = serverClient(options.socket);
    const reply = JSON.parse(
      (await call<JsonReply>(client, (done) => client[method](everything, done))).json,
    ) as Record<string, Row[]>;
    if (options.output === 'json') printJson(reply);
    else
      console.log(
        table(
          columns,
          (reply[name] ?? []).map((row) => columns.map((c) => text(row[c]))),
          `no ${name}`,
        ),
      );
  });
}

export function addServerCommands(program: Command): void {
  const server = program.command('server').description('the identity server');
  addServerRun(server);
  addServerBackup(server);
  onServer(server.command('status').description('what the server knows and serves')).action(
    async (options: CommonOptions) => {
      const client = serverClient(options.socket);
      const reply = JSON.parse((await call<JsonReply>(client, (done) => client.getStatus({}, done))).json) as Row;
      if (options.output === 'json') printJson(reply);
      else console.log(lines(reply));
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
      const client = serverClient(options.socket);
      const reply = await call<CreateJoinTokenReply>(client, (done) =>
        client.createJoinToken({ nodeName: options.node, ttlSeconds }, done),
      );
      if (options.output === 'json')
        printJson({ token: reply.token, expiresAt: new Date(Number(reply.expiresAt) * 1000).toISOString() });
      else console.log(reply.token);
    });

  const node = program.command('node').description('attested nodes');
  addList(node, 'every node with its id, incarnation and peer addresses', 'listNodes', 'nodes', [
    'name',
    'id',
    'incarnation',
    'connected',
    'peerAddresses',
    'prefixes',
  ]);

  const entry = program.command('entry').description('registration entries: which workload gets which SPIFFE ID');
  addList(entry, 'every registration entry', 'listEntries', 'entries', [
    'id',
    'spiffeId',
    'parentId',
    'selectors',
    'labels',
    'securityIdentity',
  ]);
  onServer(entry.command('create').description('add or replace an entry'))
    .requiredOption('--spiffe-id <id>', 'the SPIFFE ID the workload gets')
    .requiredOption('--node <name>', 'the node it runs on')
    .requiredOption('--selector <type:value...>', 'what the workload must be, such as unix:uid:1001; all must match')
    .option('--label <key=value...>', 'labels that policies select', [])
    .option('--port <name=port[/protocol]...>', 'ports that policies may name, such as http=8080 or dns=53/UDP', [])
    .option('--ttl <seconds>', 'life of its SVIDs', '3600')
    .action(
      async (
        options: CommonOptions & {
          spiffeId: string;
          node: string;
          selector: string[];
          label: string[];
          port: string[];
          ttl: string;
        },
      ) => {
        const labels = Object.fromEntries(
          options.label.map((pair) => {
            const at = pair.indexOf('=');
            if (at < 1) throw new CountersignError('bad-input', `--label ${pair}: write it as key=value`);
            return [pair.slice(0, at), pair.slice(at + 1)];
          }),
        );
        const client = serverClient(options.socket);
        const json = JSON.stringify({
          spiffeId: options.spiffeId,
          node: options.node,
          selectors: options.selector,
          labels,
          ports: options.port.map(namedPort),
          ttlSeconds: Number(options.ttl),
        });
        const reply = JSON.parse(
          (await call<JsonReply>(client, (done) => client.putEntry({ json, mode: '' }, done))).json,
        ) as Row;
        if (options.output === 'json') printJson(reply);
        else console.log(lines(reply));
      },
    );
  onServer(entry.command('delete <id>').description('remove an entry; its SVIDs are no longer renewed')).action(
    async (id: string, options: CommonOptions) => {
      const client = serverClient(options.socket);
      const reply = JSON.parse((await call<JsonReply>(client, (done) => client.deleteEntry({ id }, done))).json) as Row;
      if (options.output === 'json') printJson(reply);
      else console.log(lines(reply));
    },
  );

  const svid = program.command('svid').description('SVIDs: fetch, list, revoke');
  addList(svid, 'what was issued and still lives', 'listSvids', 'svids', [
    'serial',
    'spiffeId',
    'node',
    'notAfter',
    'revoked',
  ]);
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
        const client = serverClient(options.socket);
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
