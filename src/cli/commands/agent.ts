/** What a person asks of a node's agent: what is proven, who vouches, what dropped, and why. */
import type { Command } from 'commander';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { agentClient, call } from '../admin-client.ts';
import { type CommonOptions, onAgent } from '../context.ts';
import { lines, printJson, seconds, table } from '../output.ts';
import { addAuth } from './auth.ts';
import { addExplain } from './explain.ts';
import { addMonitor } from './monitor.ts';
import { addPolicyTools } from './policy.ts';
import { addAgentRun } from './run.ts';

type Row = Record<string, unknown>;
type ListMethod = 'listEndpoints' | 'listVouches' | 'listPeers' | 'listPolicy';
type Column = readonly [heading: string, cell: (row: Row) => string];

const plain = (name: string, heading = name): Column => [heading, (row) => String(row[name] ?? '')];
const joined = (name: string, heading = name): Column => [
  heading,
  (row) => ((row[name] as unknown[] | undefined) ?? []).join(','),
];
const left = (name: string, heading: string): Column => [
  heading,
  (row) => (row[name] === undefined || row[name] === null ? 'no end' : seconds(Number(row[name]))),
];

async function list(method: ListMethod, socket: string): Promise<Record<string, Row[]>> {
  const client = agentClient(socket);
  return JSON.parse((await call<JsonReply>(client, (done) => client[method]({}, done))).json);
}

function print(
  reply: Record<string, Row[]>,
  name: string,
  columns: readonly Column[],
  options: CommonOptions,
  none: string,
): void {
  if (options.output === 'json') {
    printJson(reply);
    return;
  }
  const rows = (reply[name] ?? []).map((row) => columns.map(([, cell]) => cell(row)));
  console.log(
    table(
      columns.map(([heading]) => heading),
      rows,
      none,
    ),
  );
}

function addList(
  program: Command,
  noun: string,
  what: string,
  method: ListMethod,
  name: string,
  columns: readonly Column[],
): Command {
  const command = program.command(noun).description(what);
  onAgent(command.command('list').description(`list ${what}`)).action(async (options: CommonOptions) =>
    print(await list(method, options.socket), name, columns, options, `no ${name}`),
  );
  return command;
}

const dropColumns: readonly Column[] = [
  plain('reason'),
  plain('direction'),
  plain('packets', 'dropped'),
  plain('bytes'),
  plain('observedPackets', 'observed'),
  plain('text', 'meaning'),
];

const pairColumns: readonly Column[] = [
  ['local', (row) => String(row.localName ?? row.local)],
  ['remote', (row) => String(row.remoteName ?? row.remote)],
  plain('reason'),
  plain('direction'),
  plain('packets', 'dropped'),
  plain('bytes'),
];

function addDrops(program: Command): void {
  const drop = program.command('drop').description('dropped packets, and those that would have been');
  onAgent(
    drop.command('list').description('dropped packets by reason, beside those that passed because it only observes'),
  )
    .option('--pairs', 'by pair of identities')
    .action(async (options: CommonOptions & { pairs?: boolean }) => {
      const pairs = options.pairs === true;
      const client = agentClient(options.socket);
      const reply = JSON.parse((await call<JsonReply>(client, (done) => client.listDrops({ pairs }, done))).json);
      if (pairs) print(reply, 'pairs', pairColumns, options, 'no drops');
      else print(reply, 'drops', dropColumns, options, 'no drops');
    });
}

const ruleColumns: readonly Column[] = [
  plain('rule'),
  plain('policy'),
  plain('action'),
  plain('direction'),
  ['enforced', (row) => (row.enforcement === 'observe' ? 'observe' : 'yes')],
  ['where', (row) => `${row.file}:${row.line} ${row.path}`],
  plain('description'),
];

function addPolicy(program: Command): void {
  const policy = program
    .command('policy')
    .description('policies: in force on this node, and in files without an agent');
  onAgent(policy.command('list').description('list rules in force on this node')).action(
    async (options: CommonOptions) => {
      const reply = await list('listPolicy', options.socket);
      print(reply, 'rules', ruleColumns, options, 'no rules');
      if (options.output === 'json') return;
      for (const { file, line, message } of reply.warnings ?? []) console.log(`warning: ${file}:${line}: ${message}`);
    },
  );
  onAgent(
    policy
      .command('reload')
      .description('read the policy directory again; a problem leaves the policies in force as they are'),
  ).action(async (options: CommonOptions) => {
    const client = agentClient(options.socket);
    const reply = JSON.parse((await call<JsonReply>(client, (done) => client.reloadPolicy({}, done))).json) as Row;
    if (options.output === 'json') printJson(reply);
    else console.log(lines(reply));
  });
  addPolicyTools(policy);
}

const age = (name: string, heading: string): Column => [
  heading,
  (row) => (typeof row[name] === 'number' ? seconds(row[name]) : ''),
];

const peerColumns: readonly Column[] = [
  plain('name'),
  plain('id'),
  plain('incarnation'),
  ['channel', (row) => [row.channel, (row.lastFailure as Row | undefined)?.reason ?? []].flat().join(': ')],
  plain('role'),
  age('channelAgeMs', 'age'),
  plain('protocolVersion', 'protocol'),
  plain('vouches'),
  age('leaseLeftMs', 'lease left'),
  plain('tunnel'),
  plain('lastHandshake', 'last tunnel handshake'),
];

export function addAgentCommands(program: Command): void {
  addAgentRun(program.command('agent').description('the agent of this node'));

  onAgent(
    program.command('status').description('how this node is: server, peers, tunnel, datapath, what is not protected'),
  ).action(async (options: CommonOptions) => {
    const client = agentClient(options.socket);
    const reply = JSON.parse((await call<JsonReply>(client, (done) => client.getStatus({}, done))).json) as Row;
    if (options.output === 'json') printJson(reply);
    else console.log(lines(reply));
  });
  addExplain(program);
  addMonitor(program);
  addAuth(program);
  addList(program, 'endpoint', 'workloads attached to this node', 'listEndpoints', 'endpoints', [
    plain('name'),
    plain('spiffeId'),
    plain('identity'),
    joined('addresses'),
    plain('interface'),
    plain('state'),
    joined('waitsFor', 'shut to'),
  ]);
  addList(program, 'vouch', 'addresses other nodes vouch for', 'listVouches', 'vouches', [
    plain('address'),
    plain('spiffeId'),
    plain('identity'),
    plain('nodeName', 'node'),
    plain('generation'),
    left('leaseMs', 'lease'),
  ]);
  addList(program, 'peer', 'nodes, their channels and tunnels', 'listPeers', 'peers', peerColumns);
  onAgent(program.command('peers').description('the same as peer list')).action(async (options: CommonOptions) =>
    print(await list('listPeers', options.socket), 'peers', peerColumns, options, 'no peers'),
  );
  addDrops(program);
  addPolicy(program);
}
