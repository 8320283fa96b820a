/** Compares what is attached, pinned and loaded with what should be. Pure: what inspect.ts read goes in, findings come out. */
import { type directions, type ProgramName, programNames } from './attach.ts';
import { type ChainProgram, hookName, type Inspection, isOurFilter, type Place } from './inspect.ts';

export type FindingCode =
  | 'not-loaded' /* nothing of this build is pinned */
  | 'missing' /* a program that belongs on an interface is not on it */
  | 'not-first' /* somebody's verdict can keep a packet from ours, or let it pass before */
  | 'other-build' /* an earlier or later build's program enforces */
  | 'foreign-maps' /* the program reads maps that nobody of us writes */
  | 'unpinned' /* the attachment ends with some process */
  | 'stale' /* pinned, but it holds nothing any more, or belongs to another layout */
  | 'unknown' /* pinned among ours, but not by us */
  | 'stopped' /* break-glass */
  | 'observe'
  | 'absent' /* an interface of the settings does not exist */
  | 'agent-down'
  | 'fenced' /* an endpoint and a node may not meet yet */
  | 'nearly-full';

export interface Finding {
  readonly code: FindingCode;
  readonly text: string;
  /** What to do. */
  readonly fix: string;
}

export interface Verdict {
  readonly ok: boolean;
  readonly problems: readonly Finding[];
  /** Worth knowing, but as it may be. */
  readonly notes: readonly Finding[];
}

const restart = 'restart the agent: it puts its programs in their place, and keeps flows and proofs';
const nearlyFull = 0.9;
/** Full is how they work: the oldest entry gives way. */
const evicting = new Set(['lru_hash', 'lru_percpu_hash']);

/** @param tags of this build's programs, by name. */
export function verifyNode(seen: Inspection, tags: ReadonlyMap<string, string>): Verdict {
  const problems: Finding[] = [];
  const notes: Finding[] = [];
  const { node, bpffs } = seen.settings;
  if (!seen.agentRunning) {
    notes.push({
      code: 'agent-down',
      text: `the agent of node ${node} is not running: what is proven goes on until it expires, nothing new passes`,
      fix: 'start it: systemctl start countersign-agent',
    });
  }
  for (const version of seen.otherVersions) {
    problems.push({
      code: 'stale',
      text: `programs or maps of layout v${version} are pinned under ${bpffs}/countersign/v${version} beside this build's`,
      fix: 'start the agent of this build: it takes over and removes them',
    });
  }
  if (seen.state === undefined) {
    problems.push({
      code: 'not-loaded',
      text: `nothing is pinned for node ${node} under ${bpffs}: traffic is not protected`,
      fix: 'start the agent, or correct node.name and bpffs',
    });
    return { ok: false, problems, notes };
  }
  if (seen.state.stopped) {
    problems.push({
      code: 'stopped',
      text: 'enforcement is stopped (break-glass): everything passes',
      fix: 'countersign enforcement start',
    });
  }
  if (seen.state.observe) {
    notes.push({
      code: 'observe',
      text: 'enforcement is observe: nothing is dropped',
      fix: 'set enforcement: enforce',
    });
  }
  notes.push(...fenced(seen.state));
  verifyAbsent(seen, problems, notes);
  for (const place of seen.places) problems.push(...verifyPlace(seen, place, tags));
  problems.push(...verifyPins(seen, tags));
  for (const { name, entries, maxEntries, type } of seen.maps) {
    if (entries !== undefined && !evicting.has(type) && entries >= maxEntries * nearlyFull) {
      notes.push({
        code: 'nearly-full',
        text: `map ${name} holds ${entries} of at most ${maxEntries} entries; what does not fit is dropped`,
        fix: 'fewer rules, identities or peers on this node',
      });
    }
  }
  return { ok: problems.length === 0, problems, notes };
}

function fenced({ endpoints, fences }: NonNullable<Inspection['state']>): Finding[] {
  return endpoints.flatMap(({ endpoint }) => {
    const nodes = fences.filter((fence) => fence.endpoint === endpoint).map(({ node }) => node);
    if (nodes.length === 0) return [];
    return [
      {
        code: 'fenced',
        text: `endpoint number ${endpoint} and node ${nodes.join(', ')} may not meet yet: an earlier owner of its address may still be believed there`,
        fix: 'nothing, if the node answers soon; a node that is gone for good is removed at the identity server',
      },
    ];
  });
}

function verifyAbsent(seen: Inspection, problems: Finding[], notes: Finding[]): void {
  for (const { role, of, interface: name } of seen.absent) {
    // A workload may not have come yet; the hold device ends with the agent.
    const expected = role === 'workload' || (role === 'hold' && !seen.agentRunning);
    (expected ? notes : problems).push({
      code: 'absent',
      text: `${of} has no interface: ${name} does not exist in this network namespace`,
      fix: role === 'workload' ? 'nothing, if the workload is not running' : restart,
    });
  }
}

function verifyPlace(seen: Inspection, place: Place, tags: ReadonlyMap<string, string>): Finding[] {
  const { program, interface: name, ifindex, direction, of } = place;
  const where = `${program} on ${name} (${direction})`;
  const chain = seen.hooks.get(hookName(ifindex, direction)) ?? [];
  const pinned = new Map(
    seen.links.flatMap(({ link, attachment }) =>
      link !== undefined && attachment?.program === program ? [[link.id, attachment] as const] : [],
    ),
  );
  const isOurs = (each: ChainProgram) => pinned.has(each.linkId) || isOurFilter(each) || each.tag === tags.get(program);
  const at = chain.findIndex(isOurs);
  const found = chain[at];
  if (found === undefined) {
    return [{ code: 'missing', text: `${where} is missing: ${of} is not protected there`, fix: restart }];
  }
  const findings: Finding[] = [];
  if (at > 0) {
    const before = chain.slice(0, at).map((each) => `${each.name} (${each.mode}, program ${each.id})`);
    findings.push({
      code: 'not-first',
      text: `${where} is not first: ${before.join(', ')} decides before it`,
      fix:
        found.mode === 'tcx'
          ? `take the other one off, or ${restart} (first again)`
          : `take the other one off, or move it behind priority ${found.priority}`,
    });
  }
  if (found.tag !== tags.get(program)) {
    findings.push({
      code: 'other-build',
      text: `${where} is of another build (tag ${found.tag}, this build has ${tags.get(program)})`,
      fix: restart,
    });
  }
  const maps = new Set(seen.maps.map(({ id }) => id));
  const config = seen.maps.find((map) => map.name === 'cs_config');
  if (config !== undefined && readsConfig(program) && !found.mapIds.includes(config.id)) {
    findings.push({
      code: 'foreign-maps',
      text: `${where} reads maps that are not pinned here (${found.mapIds.filter((id) => !maps.has(id)).join(', ')})`,
      fix: restart,
    });
  }
  const hasPin =
    found.mode === 'tcx'
      ? pinned.has(found.linkId)
      : seen.links.some(
          ({ attachment }) =>
            attachment?.mode === 'clsact' && attachment.program === program && attachment.ifindex === ifindex,
        );
  if (!hasPin) {
    findings.push({ code: 'unpinned', text: `${where} has no pin: nobody would find it later`, fix: restart });
  }
  const twice = chain.filter(isOurs).length;
  if (twice > 1) {
    findings.push({ code: 'stale', text: `${where} is attached ${twice} times`, fix: restart });
  }
  return findings;
}

/** from_tunnel only marks. */
function readsConfig(program: ProgramName): boolean {
  return program !== 'from_tunnel';
}

function verifyPins(seen: Inspection, tags: ReadonlyMap<string, string>): Finding[] {
  const findings: Finding[] = [];
  for (const { pin, attachment, link } of seen.links) {
    if (attachment === undefined) {
      findings.push(
        pin.startsWith('new-')
          ? { code: 'stale', text: `the pin ${pin} was left by a process that ended while it attached`, fix: restart }
          : { code: 'unknown', text: `the pin ${pin} is none of ours`, fix: 'remove it if nobody needs it' },
      );
      continue;
    }
    // The hold device ends with the agent's process.
    if (attachment.program === 'from_hold' && !seen.agentRunning) continue;
    if (link !== undefined && link.ifindex === 0) {
      findings.push({
        code: 'stale',
        text: `the pin ${pin} holds nothing any more: its interface has gone or somebody detached it`,
        fix: restart,
      });
    } else if (link !== undefined && link.ifindex !== attachment.ifindex) {
      findings.push({
        code: 'unknown',
        text: `the pin ${pin} holds a link on interface ${link.ifindex}`,
        fix: restart,
      });
    }
  }
  for (const name of programNames) {
    const program = seen.programs.get(name);
    if (program === undefined) {
      findings.push({ code: 'missing', text: `the program ${name} is not pinned`, fix: restart });
    } else if (program.tag !== tags.get(name)) {
      findings.push({
        code: 'other-build',
        text: `the pinned program ${name} is of another build (tag ${program.tag}, this build has ${tags.get(name)})`,
        fix: restart,
      });
    }
  }
  for (const { endpoint, ifindex } of seen.state?.endpoints ?? []) {
    if (!seen.places.some((place) => place.ifindex === ifindex)) {
      findings.push({
        code: 'stale',
        text: `endpoint number ${endpoint} is known by interface ${ifindex}, which does not exist`,
        fix: restart,
      });
    }
  }
  return findings;
}

export interface AttachmentRow {
  readonly interface: string;
  readonly of: string;
  readonly program: ProgramName;
  readonly direction: (typeof directions)[ProgramName];
  readonly mode: ChainProgram['mode'] | 'none';
  readonly programId: number;
  readonly tag: string;
  /** From 1, of all programs on the hook. 0: not attached. */
  readonly position: number;
  readonly programs: number;
}

/** What is attached where, for a person. */
export function attachmentRows(seen: Inspection): AttachmentRow[] {
  const pinned = new Map(
    seen.links.flatMap(({ link, attachment }) => (link === undefined ? [] : [[link.id, attachment]])),
  );
  return seen.places.map(({ interface: name, of, program, direction, ifindex }) => {
    const chain = seen.hooks.get(hookName(ifindex, direction)) ?? [];
    const at = chain.findIndex((each) => pinned.get(each.linkId)?.program === program || isOurFilter(each));
    const found = chain[at];
    return {
      interface: name,
      of,
      program,
      direction,
      mode: found?.mode ?? 'none',
      programId: found?.id ?? 0,
      tag: found?.tag ?? '',
      position: at + 1,
      programs: chain.length,
    };
  });
}
