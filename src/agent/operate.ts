/**
 * What an operator does to a node's datapath from the command line, with its agent running or not: settings file in, document
 * out. Must run in the node's network namespace. docs/cli.md describes the shapes.
 */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { loadConfigFile, parseYamlDocuments, readTextFile } from '../base/config-file.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { buildTags, type Inspection, inspectNode, type NodeSettings } from '../datapath/inspect.ts';
import { ABI_VERSION } from '../datapath/layout.ts';
import { detachNode, setStoppedWithoutAgent } from '../datapath/lifecycle.ts';
import { isLocked } from '../datapath/lock.ts';
import { isPinned, readPinned } from '../datapath/pinned.ts';
import { attachmentRows, type Finding, verifyNode } from '../datapath/verify.ts';
import { agentConfigSchema } from './config.ts';
import { describeEnforcement, type EnforcementView, readEnforcement, writeChange } from './enforcement.ts';

export const BPF_OBJECT = join(import.meta.dirname, '../../build/bpf/datapath.bpf.o');
/** How long a running agent may take to follow the record. It looks five times a second. */
const FOLLOWS_WITHIN_MS = 3_000;

const essentials = z.object({
  node: z.object({ name: z.string() }),
  dataDir: z.string(),
  bpffs: z.string().default('/sys/fs/bpf'),
});

interface Essentials {
  readonly node: string;
  readonly dataDir: string;
  readonly bpffs: string;
}

/** Break-glass must not fail for a mistake elsewhere in the file: only what it needs is read. @throws CountersignError bad-input */
function readEssentials(path: string): Essentials {
  const [document] = parseYamlDocuments(path, readTextFile(path));
  const result = essentials.safeParse(document?.value);
  if (!result.success) {
    throw new CountersignError('bad-input', `${path}: node.name and dataDir are needed; add them`);
  }
  const { node, dataDir, bpffs } = result.data;
  return { node: node.name, dataDir, bpffs };
}

function readSettings(path: string): NodeSettings {
  const config = loadConfigFile(path, agentConfigSchema);
  return {
    bpffs: config.bpffs,
    node: config.node.name,
    underlay: config.node.underlay,
    tunnelDevice: config.encryption.enabled ? config.encryption.wireguard.device : undefined,
    holdDevice: config.hold.device,
    endpoints: config.endpoints,
  };
}

export interface Request {
  readonly reason: string;
  /** Who asked, for the audit log. */
  readonly actor: string;
}

export interface EnforcementChanged {
  readonly enforcement: 'stopped' | 'started';
  /** Who put it in force: the running agent, or this command. "nobody": nothing is loaded, it holds from the next start on. */
  readonly by: 'agent' | 'command' | 'nobody';
  /** Why it will not outlive the next start of the agent. */
  readonly notRecorded?: string;
}

/**
 * Break-glass and its end. Needs neither the identity server nor the agent.
 * @throws CountersignError unavailable when an agent runs that does not react
 */
export async function changeEnforcement(
  configFile: string,
  action: 'stop' | 'start',
  request: Request,
): Promise<EnforcementChanged> {
  const { node, dataDir, bpffs } = readEssentials(configFile);
  const stopped = action === 'stop';
  let notRecorded: string | undefined;
  try {
    writeChange(dataDir, { action, ...request, atMs: Date.now() });
  } catch (thrown) {
    // A full disk is no reason to keep the glass whole.
    notRecorded = asError(thrown).message;
  }
  const done = (by: EnforcementChanged['by']): EnforcementChanged => ({
    enforcement: stopped ? 'stopped' : 'started',
    by,
    ...(notRecorded === undefined ? {} : { notRecorded }),
  });
  for (let waited = 0; isPinned(bpffs, node); waited += 50) {
    if (!isLocked(bpffs, node)) {
      try {
        setStoppedWithoutAgent({ bpffs, node }, stopped);
        return done('command');
      } catch (thrown) {
        // An agent was started in between: it goes by the record.
        if (!(thrown instanceof CountersignError && thrown.code === 'already-exists')) throw thrown;
      }
    } else if (notRecorded === undefined && readPinned(bpffs, node).stopped === stopped) {
      return done('agent');
    }
    if (waited >= FOLLOWS_WITHIN_MS) {
      throw new CountersignError(
        'unavailable',
        notRecorded === undefined
          ? `the agent of node ${node} runs but does not follow ${dataDir}; stop it (systemctl kill -s KILL countersign-agent) and repeat`
          : `${notRecorded}; stop the agent, then this command writes into the kernel directly`,
      );
    }
    await delay(50);
  }
  return done('nobody');
}

export interface EnforcementStatus extends EnforcementView {
  readonly enforcement: 'enforce' | 'observe' | 'stopped' | 'not loaded';
  readonly agent: 'running' | 'down';
}

export function enforcementStatus(configFile: string): EnforcementStatus {
  const { node, dataDir, bpffs } = readEssentials(configFile);
  const view = describeEnforcement(readEnforcement(dataDir));
  const agent = isLocked(bpffs, node) ? 'running' : 'down';
  if (!isPinned(bpffs, node)) return { enforcement: 'not loaded', agent, ...view };
  const { stopped, observe } = readPinned(bpffs, node);
  return { enforcement: stopped ? 'stopped' : observe ? 'observe' : 'enforce', agent, ...view };
}

/** Takes every program off: traffic is free afterwards. @throws CountersignError already-exists while the agent runs */
export function detachDatapath(configFile: string, request: Request): { readonly detached: boolean } {
  const { node, dataDir, bpffs } = readEssentials(configFile);
  if (isLocked(bpffs, node)) {
    throw new CountersignError(
      'already-exists',
      `the agent of node ${node} is running and would attach again; stop it first: systemctl stop countersign-agent`,
    );
  }
  if (!isPinned(bpffs, node)) return { detached: false };
  writeChange(dataDir, { action: 'detach', ...request, atMs: Date.now() });
  detachNode({ bpffs, node });
  return { detached: true };
}

export function datapathStatus(configFile: string) {
  const seen = inspectNode(readSettings(configFile));
  return {
    node: seen.settings.node,
    abi: ABI_VERSION,
    agent: seen.agentRunning ? 'running' : 'down',
    enforcement: stateOf(seen),
    ...(seen.state === undefined ? {} : { revision: Number(seen.state.revision), epoch: seen.state.epoch }),
    otherVersions: seen.otherVersions,
    attachments: attachmentRows(seen),
    maps: seen.maps.map(({ name, type, entries, maxEntries }) => ({
      name,
      type,
      ...(entries === undefined ? {} : { entries }),
      maxEntries,
    })),
  };
}

function stateOf({ state }: Inspection): EnforcementStatus['enforcement'] {
  if (state === undefined) return 'not loaded';
  return state.stopped ? 'stopped' : state.observe ? 'observe' : 'enforce';
}

export function verifyDatapath(configFile: string): {
  readonly ok: boolean;
  readonly problems: readonly Finding[];
  readonly notes: readonly Finding[];
} {
  return verifyNode(inspectNode(readSettings(configFile)), buildTags(BPF_OBJECT));
}
