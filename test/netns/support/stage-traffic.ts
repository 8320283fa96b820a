/** Traffic that a test lets run while it does its mischief, counted at both ends. */
import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { onTestFailed, onTestFinished } from 'vitest';
import { BACKEND_HTTP_PORT } from '../../stage/demo-spec.ts';
import { until } from '../../stage/shell.ts';
import type { Stage } from '../../stage/stage.ts';
import { type SteadyTraffic, startSteadyTraffic } from '../../stage/steady-traffic.ts';
import { curl, url } from '../../stage/tour/http.ts';

/** A steady stream of datagrams from a workload to backend, until it is stopped. Resolves when the first one has been sent. */
export async function startTraffic(stage: Stage, from: string, perSecond: number): Promise<SteadyTraffic> {
  onTestFailed(() => tellWhatHappened(stage));
  const traffic = await startSteadyTraffic(stage, from, perSecond);
  // Also when the test fails in between: the next one wants the same port.
  onTestFinished(() => traffic.abandon());
  return traffic;
}

export async function startBackend(stage: Stage): Promise<ChildProcess> {
  const { uid } = stage.workload('backend');
  const child = stage.spawnIn('backend', 'http-server', 'http-server.ts', String(uid), String(BACKEND_HTTP_PORT));
  await saying(stage, 'http-server', 'listening');
  return child;
}

/** HTTP status of a request to backend; 0: no answer. */
export async function ask(
  stage: Stage,
  from: string,
  options: { v6?: boolean; timeoutS?: number } = {},
): Promise<number> {
  const backend = stage.workload('backend');
  const target = url(options.v6 === true ? backend.address6 : backend.address4, BACKEND_HTTP_PORT);
  return (await curl(stage, from, target, { timeoutS: options.timeoutS ?? 3 })).status;
}

export async function saying(stage: Stage, name: string, word: string): Promise<void> {
  await until(`${name} to say "${word}"`, 10_000, () => (stage.tail(name).includes(word) ? true : undefined));
}

/** For whoever reads the failure of a test: what the nodes told each other of late, and what they dropped. */
async function tellWhatHappened(stage: Stage): Promise<void> {
  for (const { name } of stage.spec.nodes) {
    const events = stage
      .audit(name)
      .filter((l) => /^(agent|peer|tunnel|auth|lease|vouch|endpoint|revocation)/.test(l.kind));
    const told = events.slice(-60).map((l) => {
      const { time, kind, reason = '', source, destination, detail = {} } = l;
      return `${time} ${kind} ${reason} ${JSON.stringify({ source, destination, detail })}`;
    });
    const dropped = await stage.agentCli(name, 'drop', 'list').catch(() => 'the agent does not answer');
    // Where nobody decided to drop them: a queue of a device was full.
    const devices = (await stage.runIn(name, 'ip', '-s', 'link')).stdout;
    console.error([`--- ${name}`, ...told, JSON.stringify(dropped), devices, stage.tail(name, 30)].join('\n'));
  }
  for (const { name } of stage.spec.workloads) {
    const counters = (await stage.runIn(name, 'grep', '^Udp:', '/proc/net/snmp')).stdout;
    console.error([`--- ${name}`, counters].join('\n'));
  }
}

/** Packets dropped for a reason on a node so far. */
export async function drops(stage: Stage, node: string, reason: string): Promise<number> {
  const reply = (await stage.agentCli(node, 'drop', 'list')) as { drops: { reason: string; packets: number }[] };
  return reply.drops.filter((d) => d.reason === reason).reduce((sum, d) => sum + d.packets, 0);
}

/** Replaced as an editor does it: never half a file under a policy's name. */
export function writePolicy(stage: Stage, name: string, text: string): string {
  const path = join(stage.dir, 'policies', name);
  writeFileSync(path, text);
  return path;
}
