/** Policies from a directory of YAML files, all or nothing, and again whenever the files change. */
import { createHash } from 'node:crypto';
import { type FSWatcher, readdirSync, watch } from 'node:fs';
import { join } from 'node:path';
import { readTextFile } from '../base/config-file.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { type ParsedPolicies, type ParseOptions, parsePolicies, refuseDuplicates } from './grammar/parse.ts';
import type { Policy, PolicyWarning } from './rules.ts';

export interface LoadedPolicies {
  readonly policies: readonly Policy[];
  readonly warnings: readonly PolicyWarning[];
  /** Changes when any file's name or text does. */
  readonly revision: string;
}

export interface PolicyWatch {
  /** Reads the directory now; resolves when onChange or onProblem, if there was cause, has returned. */
  check(): Promise<void>;
  close(): void;
}

export interface WatchOptions extends ParseOptions {
  /** Revision the caller holds; a different one is reported at once. */
  readonly since?: string | undefined;
  /** Editors write in several steps: how long it must be quiet before the files are read. */
  readonly debounceMs?: number;
  /** A change that the file system does not report (a symlink's target, a network mount) is found after this long. */
  readonly pollMs?: number;
}

const MAX_FILES = 10_000;

/**
 * Reads *.yaml and *.yml, sorted by name; hidden files are left out.
 * @throws CountersignError bad-input that lists the problems of all files.
 */
export function loadPolicies(directory: string, options: ParseOptions = {}): LoadedPolicies {
  const files = readFiles(directory);
  return { ...parseFiles(files, options), revision: revisionOf(files) };
}

/**
 * Calls onChange with policies that are valid as a whole, or onProblem with a CountersignError; each once for each
 * revision of the files. After a problem the policies the caller holds stay in force.
 */
export function watchPolicies(
  directory: string,
  onChange: (loaded: LoadedPolicies) => void | Promise<void>,
  onProblem: (problem: CountersignError) => void,
  options: WatchOptions = {},
): PolicyWatch {
  const { debounceMs = 100, pollMs = 5_000 } = options;
  let seen = options.since;
  let closed = false;
  let timer: NodeJS.Timeout | undefined;
  let watcher: FSWatcher | undefined;
  const known: Known = new Map();
  let running: Promise<void> = Promise.resolve();

  const readOnce = async () => {
    if (closed) return;
    try {
      const files = readFiles(directory);
      if (watcher === undefined) startWatcher(); // the directory is there again
      const revision = revisionOf(files);
      if (revision === seen) return;
      seen = revision;
      await onChange({ ...parseFiles(files, options, known), revision });
    } catch (thrown) {
      const problem =
        thrown instanceof CountersignError
          ? thrown
          : new CountersignError('internal', asError(thrown).message, { cause: thrown });
      const revision = `problem: ${problem.message}`;
      if (isUnreadable(problem)) {
        if (seen === revision) return;
        seen = revision;
      }
      onProblem(problem);
    }
  };
  const check = () => {
    running = running.then(readOnce);
    return running;
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(check, debounceMs);
  };
  const startWatcher = () => {
    try {
      watcher = watch(directory, soon);
      watcher.on('error', () => {
        watcher?.close();
        watcher = undefined;
        soon();
      });
    } catch {
      watcher = undefined; // polled until it can be watched
    }
  };
  startWatcher();
  const poll = setInterval(check, pollMs);
  poll.unref();
  void check();
  return {
    check,
    close() {
      closed = true;
      clearTimeout(timer);
      clearInterval(poll);
      watcher?.close();
    },
  };
}

interface PolicyFile {
  readonly path: string;
  readonly text: string;
}

/** A problem of the directory or of reading a file, which has no revision of its own. */
class UnreadableError extends CountersignError {}

function isUnreadable(problem: CountersignError): boolean {
  return problem instanceof UnreadableError;
}

function readFiles(directory: string): PolicyFile[] {
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code ?? 'unknown error';
    const why =
      code === 'ENOENT'
        ? 'the directory does not exist; create it or correct the path'
        : `the directory cannot be read (${code}); name a directory that may be read`;
    throw new UnreadableError('bad-input', `${directory}: ${why}`, { cause: thrown });
  }
  const wanted = names.filter((name) => /^[^.].*\.ya?ml$/.test(name)).sort();
  if (wanted.length > MAX_FILES) {
    throw new UnreadableError('bad-input', `${directory}: more than ${MAX_FILES} files; merge them`);
  }
  try {
    return wanted.map((name) => ({ path: join(directory, name), text: readTextFile(join(directory, name)) }));
  } catch (thrown) {
    throw new UnreadableError('bad-input', asError(thrown).message, { cause: thrown });
  }
}

/** What became of a file's text, so that a change of one file does not have all of them read anew. */
type Known = Map<string, { readonly text: string; readonly parsed: ParsedPolicies | CountersignError }>;

function parseFiles(
  files: readonly PolicyFile[],
  options: ParseOptions,
  known: Known = new Map(),
): Omit<LoadedPolicies, 'revision'> {
  const before = new Map(known);
  known.clear();
  const policies: Policy[] = [];
  const warnings: PolicyWarning[] = [];
  const problems: string[] = [];
  for (const { path, text } of files) {
    const same = before.get(path);
    const parsed = same?.text === text ? same.parsed : parsedOrProblem(() => parsePolicies(path, text, options));
    known.set(path, { text, parsed });
    if (parsed instanceof CountersignError) problems.push(parsed.message);
    else {
      policies.push(...parsed.policies);
      warnings.push(...parsed.warnings);
    }
  }
  const duplicates = parsedOrProblem(() => refuseDuplicates(policies));
  if (duplicates instanceof CountersignError) problems.push(duplicates.message);
  if (problems.length > 0) throw new CountersignError('bad-input', problems.join('\n'));
  return { policies, warnings };
}

function parsedOrProblem<T>(parse: () => T): T | CountersignError {
  try {
    return parse();
  } catch (thrown) {
    if (thrown instanceof CountersignError) return thrown;
    throw thrown;
  }
}

function revisionOf(files: readonly PolicyFile[]): string {
  const hash = createHash('sha256');
  for (const { path, text } of files) hash.update(`${path.length} ${path} ${text.length} ${text}`);
  return hash.digest('hex');
}
