/** `countersign auth`: pairs that are proven, thrown away, or proven now step by step. */
import type { Command } from 'commander';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { agentClient, call } from '../admin-client.ts';
import { actor, type CommonOptions, onAgent, portOf } from '../context.ts';
import { printJson, seconds, table } from '../output.ts';

type Row = Record<string, unknown>;

export function addAuth(program: Command): void {
  const auth = program.command('auth').description('pairs of identities that are proven');
  addList(auth);
  onAgent(
    auth
      .command('flush [from] [to]')
      .description('throw the entries of a pair away, in both orders, or all; they are proven anew when next needed'),
  ).action(async (from: string | undefined, to: string | undefined, options: CommonOptions) => {
    if ((from === undefined) !== (to === undefined))
      throw new CountersignError('bad-input', 'auth flush: name both sides of the pair, or neither');
    const client = agentClient(options.socket);
    const request = { from: from ?? '', to: to ?? '', actor: actor() };
    const { json } = await call<JsonReply>(client, (done) => client.flushAuth(request, done));
    const reply = JSON.parse(json) as { readonly flushed: number };
    if (options.output === 'json') printJson(reply);
    else console.log(`flushed: ${reply.flushed}`);
  });
  onAgent(
    auth.command('test <from> <to>').description('prove a pair now: each step with its time, and why it was refused'),
  )
    .option('--port <port>', 'as traffic to this port needs it; left out, as any traffic of the two', portOf, 0)
    .option('--protocol <name>', 'tcp, udp or sctp', 'tcp')
    .addHelpText('after', '\nExit status 1 when the pair could not be proven.')
    .action(async (from: string, to: string, options: CommonOptions & { port: number; protocol: string }) => {
      const { port, protocol } = options;
      const client = agentClient(options.socket);
      const { json } = await call<JsonReply>(client, (done) => client.testAuth({ from, to, port, protocol }, done));
      const reply = JSON.parse(json) as TestReply;
      if (options.output === 'json') printJson(reply);
      else console.log(testText(reply));
      if (reply.verdict !== 'proven') process.exitCode = EXIT.no;
    });
}

interface TestReply {
  readonly verdict: string;
  readonly because: string;
  readonly steps: readonly { step: string; ok: boolean; ms: number; detail: string; reason?: string }[];
}

export function testText({ verdict, because, steps }: TestReply): string {
  const rows = steps.map(({ step, ok, ms, detail, reason }) => [
    step,
    ok ? 'ok' : (reason ?? 'no'),
    `${ms.toFixed(1)} ms`,
    detail,
  ]);
  return `${table(['step', 'result', 'took', 'what'], rows, 'no steps')}\n${verdict}: ${because}`;
}

function addList(auth: Command): void {
  onAgent(auth.command('list').description('the auth entries in force'))
    .option('--pinned', 'read the pinned kernel maps instead of asking the agent (needs root; works while it is down)')
    .option('--bpffs <path>', 'where the BPF file system is mounted', '/sys/fs/bpf')
    .option('--node <name>', 'whose maps, with --pinned')
    .action(async (options: CommonOptions & { pinned?: boolean; bpffs: string; node?: string }) => {
      const reply = options.pinned === true ? await pinned(options) : await asked(options);
      if (options.output === 'json') return printJson(reply);
      const rows = reply.entries.map((row) => [
        String(row.localSpiffeId ?? row.local),
        String(row.remoteSpiffeId ?? row.remote),
        String(row.remoteNodeName ?? row.remoteNode),
        String(row.authType),
        seconds(Number(row.expiresInMs)),
        row.adopted === true ? 'not proven anew yet' : String(row.flow ?? ''),
      ]);
      console.log(table(['local', 'remote', 'node', 'type', 'expires in', ''], rows, 'no pair is proven'));
    });
}

async function asked({ socket }: CommonOptions): Promise<{ entries: Row[] }> {
  const client = agentClient(socket);
  return JSON.parse((await call<JsonReply>(client, (done) => client.listAuth({}, done))).json);
}

async function pinned({
  node,
  bpffs,
}: {
  readonly node?: string;
  readonly bpffs: string;
}): Promise<{ entries: Row[] }> {
  if (node === undefined)
    throw new CountersignError('bad-input', '--pinned needs --node: the name of the node whose maps to read');
  const { pinnedAuthEntries } = await import('../../agent/pinned.ts');
  return { entries: pinnedAuthEntries(bpffs, node) };
}
