/** The agent as a process: settings, clock and log in; an orderly end when it is told to stop. */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { flushCompileCache } from 'node:module';
import { loadConfigFile } from '../base/config-file.ts';
import { CountersignError } from '../base/errors.ts';
import { createLogger } from '../base/log.ts';
import { systemClock } from '../datapath/clock.ts';
import { destroyPinned } from '../datapath/lifecycle.ts';
import { isLocked } from '../datapath/lock.ts';
import { startAgent } from './agent.ts';
import { checkNamed } from './bootstrap.ts';
import { agentConfigSchema } from './config.ts';
import { writeChange } from './enforcement.ts';
import { removeTunnel } from './path.ts';

/** Runs until `signal` is aborted. @throws CountersignError if it cannot start, or can no longer be the node; what is pinned goes on enforcing. */
export async function runAgent(configPath: string, signal: AbortSignal): Promise<void> {
  const config = loadConfigFile(configPath, agentConfigSchema);
  checkNamed(configPath, config);
  const log = createLogger('agent', config.logLevel);
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  const agent = await startAgent(config, systemClock(), log);
  // Now, not at the end: an agent that is killed starts small the next time too.
  flushCompileCache();
  const stopped = new Promise<undefined>((resolve) => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener('abort', () => resolve(undefined), { once: true });
  });
  const barred = await Promise.race([stopped, agent.barred]);
  log.info('stopping: what is proven goes on until it expires, nothing new passes');
  await agent.close();
  if (barred !== undefined) throw barred;
}

/**
 * Takes away what outlives the agent: programs, maps, tunnel device, sockets. The data directory stays: it holds the audit log.
 * Run it in the node's network namespace. Idempotent. @throws CountersignError already-exists while the agent runs
 */
export async function uninstallAgent(configPath: string, actor: string): Promise<void> {
  const config = loadConfigFile(configPath, agentConfigSchema);
  const log = createLogger('agent', config.logLevel);
  if (isLocked(config.bpffs, config.node.name)) {
    throw new CountersignError(
      'already-exists',
      `the agent of node ${config.node.name} is running; stop it first: systemctl disable --now countersign-agent`,
    );
  }
  if (existsSync(config.dataDir)) {
    writeChange(config.dataDir, { action: 'uninstall', reason: 'agent uninstall', actor, atMs: Date.now() });
  }
  destroyPinned(config.bpffs, config.node.name);
  await removeTunnel(config, log);
  // A killed agent leaves them behind; nobody answers there.
  for (const path of [config.sockets.admin, config.sockets.workload]) rmSync(path, { force: true });
}
