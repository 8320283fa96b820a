/**
 * A process that does with the real datapath what its argument says and ends itself by SIGKILL at a step of it: {work, options,
 * endpoints, killAt, record}. What it gets through to the end prints its steps; with `record` also effects without a step between.
 */
import fs from 'node:fs';
import { flushCompileCache, syncBuiltinESMExports } from 'node:module';
import { native } from '../../../native/index.ts';
import { createLogger } from '../../../src/base/log.ts';
import { systemClock } from '../../../src/datapath/clock.ts';
import { type DatapathOptions, openDatapath } from '../../../src/datapath/datapath.ts';
import { destroyPinned, detachNode } from '../../../src/datapath/lifecycle.ts';
import type { EndpointAttachment } from '../../../src/model/datapath.ts';
import { PORTS, policyOf, prefixes } from './pair.ts';

export type Work = 'life' | 'start' | 'detach' | 'destroy';

export interface FaultPlan {
  readonly work: Work;
  readonly options: Omit<DatapathOptions, 'clock' | 'log' | 'onSignal' | 'onStep'>;
  readonly endpoints: readonly EndpointAttachment[];
  readonly underlay: number;
  /** 1: after the first effect. 0: never. */
  readonly killAt: number;
  readonly record?: boolean;
}

export interface FaultReport {
  readonly steps: readonly string[];
  /** Two effects with no step between them: a place where no test kills. */
  readonly gaps: readonly string[];
}

const plan = JSON.parse(process.argv[2]!, (_, v) =>
  typeof v === 'string' && /^\d+n$/.test(v) ? BigInt(v.slice(0, -1)) : v,
) as FaultPlan;
const steps: string[] = [];
const gaps: string[] = [];
let sinceStep: string | undefined;
const onStep = (step: string) => {
  steps.push(step);
  sinceStep = undefined;
  if (steps.length === plan.killAt) process.kill(process.pid, 'SIGKILL');
};

/** Every call that changes the kernel, watched: one that comes without a step after the one before it is a gap. */
function watchEffects(): void {
  const watch = (of: Record<string, unknown>, name: string) => {
    const call = of[name] as (...args: unknown[]) => unknown;
    of[name] = (...args: unknown[]) => {
      const result = call.apply(of, args);
      if (sinceStep !== undefined) gaps.push(`${sinceStep}, then ${name} after step ${steps.length} (${steps.at(-1)})`);
      sinceStep = name;
      return result;
    };
  };
  const calls = [
    'mapUpdate',
    'mapDelete',
    'mapUpdateBatch',
    'mapDeleteBatch',
    'objPin',
    'tcxAttach',
    'linkUpdate',
    'linkDetach',
  ];
  for (const name of [...calls, 'clsactAttach', 'clsactDetach']) {
    watch(native() as unknown as Record<string, unknown>, name);
  }
  for (const name of ['renameSync', 'unlinkSync']) watch(fs as unknown as Record<string, unknown>, name);
  syncBuiltinESMExports();
}

function open() {
  return openDatapath({
    ...plan.options,
    clock: systemClock(),
    log: createLogger('fault-host', 'warn'),
    onSignal: () => {},
    onStep,
  });
}

const works: Record<Work, () => void> = {
  start() {
    const datapath = open();
    datapath.attachUnderlay(plan.underlay);
    datapath.setPrefixes(prefixes);
    datapath.setPolicy(policyOf(PORTS.allowed));
    for (const endpoint of plan.endpoints) datapath.putEndpoint(endpoint);
  },
  life() {
    works.start();
  },
  detach: () => detachNode({ bpffs: plan.options.bpffs, node: plan.options.node, onStep }),
  destroy: () => destroyPinned(plan.options.bpffs, plan.options.node, onStep),
};
works.life = () => {
  const datapath = open();
  const [a, b] = plan.endpoints as [EndpointAttachment, EndpointAttachment];
  datapath.attachUnderlay(plan.underlay);
  datapath.setPrefixes(prefixes);
  datapath.setPolicy(policyOf(PORTS.allowed));
  datapath.putEndpoint(a);
  datapath.putEndpoint(b);
  datapath.setPolicy(policyOf(PORTS.allowed, PORTS.sometimes));
  datapath.setPolicy(policyOf(PORTS.allowed));
  datapath.putEndpoint({ ...b, open: false });
  datapath.putEndpoint(b);
  datapath.removeEndpoint(a.endpoint);
  datapath.putEndpoint({ ...a, generation: a.generation + 1n });
  datapath.putEndpoint({ ...b, identity: a.identity });
  datapath.putEndpoint(b);
};

native();
if (plan.record === true) watchEffects();
works[plan.work]();
// At an exit this happens by itself.
flushCompileCache();
const report: FaultReport = { steps, gaps };
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.kill(process.pid, 'SIGKILL'));
