/** Restarts both agents with encryption off and allowUnboundPath, or back as the example files have it. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse, stringify } from 'yaml';
import { copyExamples, type Stage } from '../stage.ts';

export async function clearText(stage: Stage, on: boolean): Promise<void> {
  for (const node of stage.spec.nodes) await stage.stop(node.name);
  copyExamples(stage.dir);
  if (on) {
    for (const node of stage.spec.nodes) {
      const file = join(stage.dir, `agent-${node.name}.yaml`);
      const config = parse(readFileSync(file, 'utf8')) as Record<string, Record<string, unknown>>;
      config.encryption = { ...config.encryption, enabled: false };
      config.authentication = { ...config.authentication, allowUnboundPath: true };
      writeFileSync(file, stringify(config));
    }
  }
  await Promise.all(stage.spec.nodes.map((node) => stage.startAgent(node.name)));
}
