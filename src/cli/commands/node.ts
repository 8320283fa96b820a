/** Nodes: who attested, and who may no more. */
import type { Command } from 'commander';
import { type CommonOptions, onServer } from '../context.ts';
import { ask, print, printRows, type Row } from '../server-replies.ts';

interface ReasonOptions extends CommonOptions {
  readonly reason: string;
}

const COLUMNS = ['name', 'state', 'id', 'incarnation', 'attestor', 'connected', 'peerAddresses', 'prefixes'];

export function addNodeCommands(program: Command): void {
  const node = program.command('node').description('nodes: list, evict, ban');
  onServer(node.command('list').description('every node with its state, id, incarnation and peer addresses')).action(
    async (options: CommonOptions) => {
      const reply = await ask<{ nodes: Row[] }>(options, (client, done) => client.listNodes({}, done));
      printRows(options, reply, reply.nodes, COLUMNS, 'no nodes');
    },
  );
  onServer(
    node.command('evict <name>').description('send a node away: it must attest anew; what it holds runs to its end'),
  )
    .option('--reason <text>', 'for the audit log', '')
    .action(async (name: string, options: ReasonOptions) => {
      const request = { node: name, reason: options.reason };
      print(options, await ask<Row>(options, (client, done) => client.evictNode(request, done)));
    });
  onServer(
    node
      .command('ban <name>')
      .description('revoke all that a node holds, and let nobody attest under its name until the ban is lifted'),
  )
    .option('--reason <text>', 'for the audit log and node list', '')
    .action(async (name: string, options: ReasonOptions) => {
      const request = { node: name, reason: options.reason };
      print(options, await ask<Row>(options, (client, done) => client.banNode(request, done)));
    });
  onServer(node.command('unban <name>').description('lift a ban: the node may attest again')).action(
    async (name: string, options: CommonOptions) => {
      const request = { node: name, reason: '' };
      print(options, await ask<Row>(options, (client, done) => client.unbanNode(request, done)));
    },
  );
}
