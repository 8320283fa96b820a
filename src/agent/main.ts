/** The agent as a process: settings, clock and log in; an orderly end when it is told to stop. */
import { mkdirSync } from 'node:fs';
import { loadConfigFile } from '../base/config-file.ts';
import { createLogger } from '../base/log.ts';
import { systemClock } from '../datapath/clock.ts';
import { destroyPinned } from '../datapath/lifecycle.ts';
import { startAgent } from './agent.ts';
import { checkNamed } from './bootstrap.ts';
import { agentConfigSchema } from './config.ts';
import { removeTunnel } from './path.ts';

/** Runs until `signal` is aborted. @throws CountersignError if it cannot start; what is pinned goes on enforcing. */
export async function runAgent(configPath: string, signal: AbortSignal): Promise<void> {
  const config = loadConfigFile(configPath, agentConfigSchema);
  checkNamed(configPath, config);
  const log = createLogger('agent', config.logLevel);
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  const agent = await startAgent(config, systemClock(), log);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  log.info('stopping: what is proven goes on until it expires, nothing new passes');
  await agent.close();
}

/** Takes away what outlives the agent: programs, maps, tunnel device. Run it in the node's network namespace. */
export async function uninstallAgent(configPath: string): Promise<void> {
  const config = loadConfigFile(configPath, agentConfigSchema);
  const log = createLogger('agent', config.logLevel);
  destroyPinned(config.bpffs, config.node.name);
  await removeTunnel(config, log);
}
