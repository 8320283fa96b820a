// The countersign command. Exit status: 0 ok, 1 the answer is "no", 2 bad input, 3 unreachable, 4 partly.
import { Command, CommanderError } from 'commander';
import packageJson from '../../package.json' with { type: 'json' };
import { EXIT } from '../base/exit-codes.ts';
import { addAgentCommands } from './commands/agent.ts';
import { addAuditCommands } from './commands/audit.ts';
import { addBundleCommands } from './commands/bundle.ts';
import { addCaCommands } from './commands/ca.ts';
import { addDatapathCommands } from './commands/datapath.ts';
import { addEnforcementCommands } from './commands/enforcement.ts';
import { addMigrateCommands } from './commands/migrate.ts';
import { addServerCommands } from './commands/server.ts';
import { fail } from './context.ts';

// The reader went away (`| head`): nothing more to say.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(EXIT.ok);
  throw error;
});

const program = new Command('countersign')
  .description(
    'Two workloads prove who they are before a packet passes between them; the kernel checks it on every packet.',
  )
  .version(packageJson.version)
  .showHelpAfterError('(--help shows what there is)')
  .addHelpText('after', '\nExit status: 0 ok, 1 the answer is "no", 2 bad input, 3 unreachable, 4 done in part.');

addAgentCommands(program);
addServerCommands(program);
addCaCommands(program);
addBundleCommands(program);
addAuditCommands(program);
addDatapathCommands(program);
addEnforcementCommands(program);
addMigrateCommands(program);

function overrideExit(command: Command): void {
  command.exitOverride();
  for (const child of command.commands) overrideExit(child);
}
overrideExit(program);

try {
  await program.parseAsync();
} catch (thrown) {
  // Commander has printed its own message; help and version are no errors.
  if (thrown instanceof CommanderError) process.exitCode = thrown.exitCode === 0 ? EXIT.ok : EXIT.badInput;
  else fail(thrown);
}
