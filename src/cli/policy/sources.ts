/** What the offline policy commands read: policies from files and folders, workloads from a registration entries file. */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { entriesFileSchema } from '../../../identity/entry-spec.ts';
import { loadConfigFile, readTextFile } from '../../base/config-file.ts';
import { CountersignError } from '../../base/errors.ts';
import type { IdentityRow } from '../../model/identity.ts';
import { type SpiffeId, securityIdentity } from '../../model/ids.ts';
import { type L7Handling, parsePolicies, refuseDuplicates } from '../../policy/grammar/parse.ts';
import type { Policy, PolicyWarning } from '../../policy/rules.ts';

export interface PolicySources {
  readonly policies: readonly Policy[];
  readonly warnings: readonly PolicyWarning[];
}

/** Where a problem stands, and what it is. */
export interface TextProblem {
  readonly file: string;
  readonly line: number | undefined;
  readonly message: string;
}

const MAX_FILES = 10_000;
/** Numbers are only needed to tell workloads apart: the real ones are the identity server's. */
const FIRST_WORKLOAD_IDENTITY = 256;
const MAX_WORKLOADS = 65_536 - FIRST_WORKLOAD_IDENTITY;

/** Files, and of folders the *.yaml and *.yml in them, as the agent reads them. @throws CountersignError bad-input */
function policyFiles(paths: readonly string[]): string[] {
  const files = paths.flatMap((path) => {
    if (!isFolder(path)) return [path];
    const names = readdirSync(path).filter((name) => /^[^.].*\.ya?ml$/.test(name));
    return names.sort().map((name) => join(path, name));
  });
  if (files.length > MAX_FILES)
    throw new CountersignError('bad-input', `${paths.join(', ')}: more than ${MAX_FILES} files; name fewer`);
  return [...new Set(files)];
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

/** Everything that is wrong in any of the files, or the policies. */
export function readPolicies(
  paths: readonly string[],
  l7: L7Handling,
): { readonly found: PolicySources; readonly problems: readonly TextProblem[] } {
  const policies: Policy[] = [];
  const warnings: PolicyWarning[] = [];
  const problems: TextProblem[] = [];
  const attempt = (file: string, act: () => void) => {
    try {
      act();
    } catch (thrown) {
      if (!(thrown instanceof CountersignError)) throw thrown;
      problems.push(...thrown.message.split('\n').map((text) => problemOf(file, text)));
    }
  };
  for (const file of policyFiles(paths)) {
    attempt(file, () => {
      const parsed = parsePolicies(file, readTextFile(file), { l7 });
      policies.push(...parsed.policies);
      warnings.push(...parsed.warnings);
    });
  }
  attempt('', () => refuseDuplicates(policies));
  return { found: { policies, warnings }, problems };
}

/** @throws CountersignError bad-input with all problems. */
export function loadPolicySources(paths: readonly string[], l7: L7Handling): PolicySources {
  const { found, problems } = readPolicies(paths, l7);
  if (problems.length > 0) throw new CountersignError('bad-input', problems.map(problemText).join('\n'));
  return found;
}

/** "FILE:LINE: text", or "FILE: text" of what concerns a file as such. */
function problemOf(file: string, text: string): TextProblem {
  const match = /^(.*?):(\d+): (.*)$/.exec(text);
  if (match !== null) return { file: match[1]!, line: Number(match[2]), message: match[3]! };
  const message = text.startsWith(`${file}: `) ? text.slice(file.length + 2) : text;
  return { file, line: undefined, message };
}

export function problemText({ file, line, message }: TextProblem): string {
  return `${line === undefined ? file : `${file}:${line}`}: ${message}`;
}

/** Workloads by SPIFFE ID, as the identity server would make them of the file's entries. */
export interface Workloads {
  readonly rows: readonly IdentityRow[];
  /** An entry's id, a SPIFFE ID, or the last part of one. */
  byName(name: string): IdentityRow | undefined;
  /** Short, if that is clear. */
  nameOf(row: IdentityRow): string;
}

/** @throws CountersignError bad-input that names file, line and field, or the entries that contradict each other */
export function loadWorkloads(path: string | undefined): Workloads {
  const entries = path === undefined ? [] : loadConfigFile(path, entriesFileSchema).entries;
  const byId = new Map<string, IdentityRow>();
  const bySpiffeId = new Map<SpiffeId, { row: IdentityRow; entry: (typeof entries)[number] }>();
  for (const entry of entries) {
    const { id, spiffeId, labels, ports } = entry;
    const known = bySpiffeId.get(spiffeId);
    if (known !== undefined && !isDeepStrictEqual([known.entry.labels, known.entry.ports], [labels, ports])) {
      throw new CountersignError(
        'bad-input',
        `${path}: entries ${known.entry.id} and ${id}: both are ${spiffeId} but have different labels or ports; make them equal`,
      );
    }
    if (bySpiffeId.size >= MAX_WORKLOADS)
      throw new CountersignError('bad-input', `${path}: more than ${MAX_WORKLOADS} SPIFFE IDs; name fewer`);
    const identity = securityIdentity(FIRST_WORKLOAD_IDENTITY + bySpiffeId.size);
    const row = known?.row ?? { identity, spiffeId, labels, nodes: [], ports };
    if (known === undefined) bySpiffeId.set(spiffeId, { row, entry });
    byId.set(id, row);
  }
  const rows = [...bySpiffeId.values()].map(({ row }) => row);
  const byLastPart = new Map<string, IdentityRow | 'several'>();
  for (const row of rows) byLastPart.set(lastPart(row), byLastPart.has(lastPart(row)) ? 'several' : row);
  const byShortName = (name: string) => {
    const found = byLastPart.get(name);
    return found === 'several' ? undefined : found;
  };
  return {
    rows,
    byName: (name) => bySpiffeId.get(name as SpiffeId)?.row ?? byId.get(name) ?? byShortName(name),
    nameOf: (row) => (byShortName(lastPart(row)) === row ? lastPart(row) : row.spiffeId),
  };
}

const lastPart = ({ spiffeId }: IdentityRow) => spiffeId.slice(spiffeId.lastIndexOf('/') + 1);
