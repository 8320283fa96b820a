/** What a person asks of a node's agent: what is proven, who vouches, what dropped, and why. */
import type { Command } from 'commander';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { agentClient, call } from '../admin-client.ts';
import { type CommonOptions, onAgent } from '../context.ts';
import { lines, printJson, seconds, table } from '../output.ts';
import { addMonitor } from './monitor.ts';
import { addPolicyTools } from './policy.ts';
import { addAgentRun } from './run.ts';

type Row = Record<string, unknown>;
type ListMethod = 'listEndpoints' | 'listVouches' | 'listAuth' | 'listPeers' | 'listPolicy';
type Column = readonly [heading: string, cell: (row: Row) => string];

const plain = (name: string, heading = name): Column => [heading, (row) => String(row[name] ?? '')];
const joined = (name: string): Column => [name, (row) => ((row[name] as unknown[] | undefined) ?? []).join(',')];
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

const authColumns: readonly Column[] = [
  ['local', (row) => String(row.localSpiffeId ?? row.local)],
  ['remote', (row) => String(row.remoteSpiffeId ?? row.remote)],
  ['node', (row) => String(row.remoteNodeName ?? row.remoteNode)],
  plain('authType', 'type'),
  left('expiresInMs', 'expires in'),
];

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

function addAuth(program: Command): void {
  const auth = program.command('auth').description('pairs of identities that are proven');
  onAgent(auth.command('list').description('the auth entries in force'))
    .option('--pinned', 'read the pinned kernel maps instead of asking the agent (needs root; works while it is down)')
    .option('--bpffs <path>', 'where the BPF file system is mounted', '/sys/fs/bpf')
    .option('--node <name>', 'whose maps, with --pinned')
    .action(async (options: CommonOptions & { pinned?: boolean; bpffs: string; node?: string }) => {
      let reply: Record<string, Row[]>;
      if (options.pinned === true) {
        if (options.node === undefined)
          throw new CountersignError('bad-input', '--pinned needs --node: the name of the node whose maps to read');
        const { pinnedAuthEntries } = await import('../../agent/pinned.ts');
        reply = { entries: pinnedAuthEntries(options.bpffs, options.node) };
      } else reply = await list('listAuth', options.socket);
      print(reply, 'entries', authColumns, options, 'no pair is proven');
    });
}

function addExplain(program: Command): void {
  onAgent(
    program
      .command('explain <from> <to>')
      .description('would a packet pass, and why: identity, policy, vouch, proof, tunnel, last failure'),
  )
    .option('--port <port>', "destination port; of icmp and icmpv6 the message's type", '0')
    .option('--protocol <name>', 'tcp, udp, sctp, icmp or icmpv6', 'tcp')
    .addHelpText(
      'after',
      '\nFROM and TO are endpoint names, SPIFFE IDs, addresses (of anybody), or host, world, remote-node.\n' +
        'Exit status 1 when the answer is no.',
    )
    .action(async (from: string, to: string, options: CommonOptions & { port: string; protocol: string }) => {
      const port = Number(options.port);
      if (!Number.isInteger(port) || port < 0 || port > 65535)
        throw new CountersignError('bad-input', `--port ${options.port}: give a number from 0 to 65535`);
      const client = agentClient(options.socket);
      const reply = JSON.parse(
        (await call<JsonReply>(client, (done) => client.explain({ from, to, port, protocol: options.protocol }, done)))
          .json,
      ) as Row;
      if (options.output === 'json') printJson(reply);
      else console.log(lines(reply));
      if (reply.verdict === 'deny') process.exitCode = EXIT.no;
    });
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
  ]);
  addList(program, 'vouch', 'addresses other nodes vouch for', 'listVouches', 'vouches', [
    plain('address'),
    plain('spiffeId'),
    plain('identity'),
    plain('nodeName', 'node'),
    plain('generation'),
    left('leaseMs', 'lease'),
  ]);
  addList(program, 'peer', 'nodes, their channels and tunnels', 'listPeers', 'peers', [
    plain('name'),
    plain('id'),
    plain('channel'),
    plain('tunnel'),
    plain('lastHandshake', 'last tunnel handshake'),
  ]);
  addDrops(program);
  addPolicy(program);
}
