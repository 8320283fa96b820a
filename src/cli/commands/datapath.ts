/** The node's kernel programs and maps, read and taken off without the agent. */
import type { Command } from 'commander';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { actor, onNode } from '../context.ts';
import { printJson, table } from '../output.ts';

interface Options {
  readonly output: 'text' | 'json';
  readonly config: string;
}

async function status({ output, config }: Options): Promise<void> {
  const { datapathStatus } = await import('../../agent/operate.ts');
  const seen = datapathStatus(config);
  if (output === 'json') {
    printJson(seen);
    return;
  }
  const state = `node ${seen.node}: enforcement ${seen.enforcement}, agent ${seen.agent}, layout v${seen.abi}`;
  const attachments = seen.attachments.map((row) => [
    row.interface,
    row.program,
    row.direction,
    row.mode,
    row.position === 0 ? 'none' : `${row.position} of ${row.programs}`,
    row.programId,
    row.tag,
    row.of,
  ]);
  const maps = seen.maps.map(({ name, type, entries, maxEntries }) => [
    name,
    type,
    entries ?? '',
    maxEntries,
    entries === undefined ? '' : `${((entries / maxEntries) * 100).toFixed(1)} %`,
  ]);
  const headings = ['interface', 'program', 'hook', 'by', 'position', 'id', 'tag', 'for'];
  console.log(
    [
      state,
      '',
      table(headings, attachments, 'nothing is attached'),
      '',
      table(['map', 'type', 'entries', 'at most', 'full'], maps, 'no maps are pinned'),
    ].join('\n'),
  );
}

async function verify({ output, config }: Options): Promise<void> {
  const { verifyDatapath } = await import('../../agent/operate.ts');
  const verdict = verifyDatapath(config);
  if (output === 'json') printJson(verdict);
  else {
    for (const { text, fix } of verdict.problems) console.log(`problem: ${text}\n         ${fix}`);
    for (const { text, fix } of verdict.notes) console.log(`note: ${text}\n      ${fix}`);
    console.log(verdict.ok ? 'ok: what should be attached is, first, pinned and of this build' : 'not ok');
  }
  if (!verdict.ok) process.exitCode = EXIT.no;
}

async function detach({ output, config, yes, reason }: Options & { yes?: boolean; reason: string }): Promise<void> {
  if (yes !== true) {
    throw new CountersignError(
      'bad-input',
      'detach takes every program off: afterwards all traffic of the workloads passes, unchecked and unencrypted; say --yes if you want that',
    );
  }
  const { detachDatapath } = await import('../../agent/operate.ts');
  const result = detachDatapath(config, { reason, actor: actor() });
  if (output === 'json') printJson(result);
  else if (result.detached) console.log('detached: traffic is free until the agent starts again');
  else console.log('nothing was attached');
}

export function addDatapathCommands(program: Command): void {
  const datapath = program.command('datapath').description("this node's kernel programs and maps; needs no agent");
  onNode(
    datapath.command('status').description('what is attached where and in which place, and how full the maps are'),
  ).action(status);
  onNode(
    datapath
      .command('verify')
      .description('compare what is attached, pinned and loaded with what should be; exit status 1 if it differs'),
  ).action(verify);
  onNode(
    datapath.command('detach').description('take every program off; all traffic passes until the agent starts again'),
  )
    .option('--yes', 'yes, traffic is to be free')
    .option('--reason <text>', 'why, for the audit log', 'datapath detach')
    .action(detach);
}
