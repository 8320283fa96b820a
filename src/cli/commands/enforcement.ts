/** Break-glass: enforcement off and on again, with the identity server down, the agent down, or both. */
import { type Command, InvalidArgumentError } from 'commander';
import { EXIT } from '../../base/exit-codes.ts';
import { actor, onNode } from '../context.ts';
import { lines, printJson } from '../output.ts';

interface Options {
  readonly output: 'text' | 'json';
  readonly config: string;
  readonly reason: string;
}

function reason(text: string): string {
  const said = text.trim();
  if (said.length === 0 || said.length > 512) throw new InvalidArgumentError('say why in 1 to 512 characters');
  return said;
}

function print(output: Options['output'], value: object): void {
  if (output === 'json') printJson(value);
  else console.log(lines(value));
}

export function addEnforcementCommands(program: Command): void {
  const enforcement = program.command('enforcement').description('break-glass: let everything pass, and end that');
  onNode(
    enforcement
      .command('stop')
      .description('let everything pass until `enforcement start`; works with the server and the agent down; audited'),
  )
    .requiredOption('--reason <text>', 'why, for the audit log', reason)
    .action(async ({ output, config, reason }: Options) => {
      const { changeEnforcement } = await import('../../agent/operate.ts');
      print(output, await changeEnforcement(config, 'stop', { reason, actor: actor() }));
    });
  onNode(enforcement.command('start').description('enforce again'))
    .option('--reason <text>', 'why, for the audit log', reason, 'enforcement start')
    .action(async ({ output, config, reason }: Options) => {
      const { changeEnforcement } = await import('../../agent/operate.ts');
      print(output, await changeEnforcement(config, 'start', { reason, actor: actor() }));
    });
  onNode(enforcement.command('status').description('is enforcement on; since when not, by whom and why')).action(
    async ({ output, config }: Options) => {
      const { enforcementStatus } = await import('../../agent/operate.ts');
      const status = enforcementStatus(config);
      print(output, status);
      if (status.enforcement !== 'enforce') process.exitCode = EXIT.no;
    },
  );
}
