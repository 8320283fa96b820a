/** A stage for one test file: what deploy/examples describes, under names and paths that no other stage has. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse, stringify } from 'yaml';
import { DEMO } from '../../stage/demo-spec.ts';
import { copyExamples, type StageSpec } from '../../stage/stage.ts';
import type { NodeSpec } from '../../stage/topology.ts';

const EXAMPLE_PREFIXES = { device: 'cs-wg-', dir: DEMO.dir };

/** A node that hosts no workload: a member of the cluster whose credentials a test misuses. */
export const NODE_C: NodeSpec = {
  name: 'node-c',
  underlay4: '10.77.0.3',
  underlay6: 'fd77::3',
  prefix4: '10.77.3.0/24',
  prefix6: 'fd77:3::/64',
};

export interface TestStageOptions {
  readonly workloads: readonly string[];
  /** NODE_C as well. */
  readonly third?: boolean;
}

/** @param name at most eight characters: wireguard-go's control socket is named after the device, for the whole host. */
export function testStage(name: string, options: TestStageOptions): StageSpec {
  const dir = `/run/countersign-test-${name}`;
  return {
    ...DEMO,
    prefix: `cs-t-${name}`,
    dir,
    nodes: options.third === true ? [...DEMO.nodes, NODE_C] : DEMO.nodes,
    workloads: DEMO.workloads.filter((w) => options.workloads.includes(w.name)),
    configure: () => {
      copyExamples(dir);
      for (const file of readdirSync(dir).filter((f) => f.endsWith('.yaml'))) {
        const text = readFileSync(join(dir, file), 'utf8');
        writeFileSync(join(dir, file), own(text, name, dir));
      }
      if (options.third === true) addThirdNode(dir);
    },
  };
}

function own(text: string, name: string, dir: string): string {
  return text.replaceAll(EXAMPLE_PREFIXES.dir, dir).replaceAll(EXAMPLE_PREFIXES.device, `cs-${name}-`);
}

function addThirdNode(dir: string): void {
  editYaml(join(dir, 'server.yaml'), (server) => {
    const nodes = server.nodes as unknown[];
    nodes.push({ name: NODE_C.name, prefixes: [NODE_C.prefix4, NODE_C.prefix6] });
  });
  const config = readFileSync(join(dir, 'agent-node-b.yaml'), 'utf8')
    .replaceAll('node-b', NODE_C.name)
    .replaceAll('10.77.0.2', NODE_C.underlay4)
    .replace(/(device: \S+-)b/, '$1c');
  const file = join(dir, `agent-${NODE_C.name}.yaml`);
  writeFileSync(file, config);
  editYaml(file, (agent) => {
    agent.endpoints = [];
  });
}

export function editYaml(file: string, change: (document: Record<string, unknown>) => void): void {
  const document = parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
  change(document);
  writeFileSync(file, stringify(document));
}
