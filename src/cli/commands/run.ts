/** `countersign server run` and `countersign agent run`: the processes themselves. */
import type { Command } from 'commander';
import { actor } from '../context.ts';

/** SIGTERM and SIGINT end the process in order; a second one ends it at once. */
function untilSignalled(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(130);
      controller.abort();
    });
  }
  return controller.signal;
}

export function addServerRun(server: Command): void {
  server
    .command('run')
    .description('run the identity server in the foreground')
    .requiredOption('--config <file>', 'a ServerConfig file')
    .action(async ({ config }: { config: string }) => {
      const { runServer } = await import('../../../identity/main.ts');
      await runServer(config, untilSignalled());
      process.exit(process.exitCode ?? 0);
    });
}

export function addAgentRun(agent: Command): void {
  agent
    .command('run')
    .description('run the agent of this node in the foreground')
    .requiredOption('--config <file>', 'an AgentConfig file')
    .action(async ({ config }: { config: string }) => {
      const { runAgent } = await import('../../agent/main.ts');
      await runAgent(config, untilSignalled());
      process.exit(process.exitCode ?? 0);
    });
  agent
    .command('uninstall')
    .description(
      'take programs, pinned maps and the tunnel device of this node away; traffic is unprotected afterwards',
    )
    .requiredOption('--config <file>', "the node's AgentConfig file")
    .action(async ({ config }: { config: string }) => {
      const { uninstallAgent } = await import('../../agent/main.ts');
      await uninstallAgent(config, actor());
    });
}
