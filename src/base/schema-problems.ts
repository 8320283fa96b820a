/** What a zod schema finds wrong in a YAML document, in words for a person: unknown keys by name, with the nearest known one. */
import type { z } from 'zod';
import { err, ok, type Result } from './errors.ts';
import type { FieldPath, Problem, YamlDocument } from './yaml-document.ts';

/** Every problem of the document, by line. `hint(path, key)` may replace the advice given for an unknown key. */
export function checkSchema<T>(
  document: YamlDocument,
  schema: z.ZodType<T>,
  hint?: (path: FieldPath, key: string) => string | undefined,
): Result<T, Problem[]> {
  const problems = new Map<string, Problem>();
  const add = (path: FieldPath, message: string) => {
    const problem = { file: document.file, line: document.lineOf(path), path, message };
    problems.set(`${JSON.stringify(path)} ${message}`, problem);
  };
  const meant = new Set<string>();
  const addUnknown = (path: FieldPath, key: string, known: readonly string[]) => {
    const near = nearest(key, known);
    const hinted = hint?.(path, key);
    if (near !== undefined && hinted === undefined) meant.add(JSON.stringify([...path, near]));
    add([...path, key], `unknown field; ${hinted ?? adviceFor(near, known)}`);
  };

  visitUnknownKeys(schema as unknown as Schema, document.value, [], addUnknown);
  const parsed = schema.safeParse(document.value, { reportInput: true });
  if (!parsed.success) {
    for (const issue of flattenIssues(parsed.error.issues, [])) {
      if (issue.code === 'unrecognized_keys') {
        const known = knownKeysAt(schema as unknown as Schema, issue.path);
        for (const key of issue.keys) addUnknown(issue.path, key, known);
      } else if (!meant.has(JSON.stringify(issue.path)) || issue.input !== undefined) {
        add(issue.path, messageOf(issue)); // a misspelt key is one mistake, not also a missing one
      }
    }
  }
  if (problems.size > 0) return err([...problems.values()].sort((a, b) => (a.line ?? 0) - (b.line ?? 0)));
  return ok((parsed as { data: T }).data);
}

type Issue = z.core.$ZodIssue & { path: (string | number)[] };

/** A union reports all its branches: the one that came furthest tells a person most. */
function flattenIssues(issues: readonly z.core.$ZodIssue[], prefix: (string | number)[]): Issue[] {
  return issues.flatMap((issue) => {
    const path = [...prefix, ...issue.path.map((p) => (typeof p === 'symbol' ? String(p) : p))] as (string | number)[];
    if (issue.code === 'invalid_union' && issue.errors.length > 0) {
      const wrongKind = (branch: readonly z.core.$ZodIssue[]) =>
        branch.some((i) => i.path.length === 0 && i.code === 'invalid_type');
      const fitting = issue.errors.filter((branch) => !wrongKind(branch));
      if (fitting.length === 1 && fitting[0] !== undefined) return flattenIssues(fitting[0], path);
    }
    return [{ ...issue, path } as Issue];
  });
}

function messageOf(issue: Issue): string {
  const given = shown(issue.input);
  if (issue.message.includes(';')) return issue.message; // the schema's own words, with the fix
  switch (issue.code) {
    case 'invalid_type':
      if (issue.input === undefined) return `missing; set it to ${article(issue.expected)}`;
      if (issue.expected === 'string' && typeof issue.input !== 'object') {
        return `must be a string, not ${given}; put it in quotes`;
      }
      return `must be ${article(issue.expected)}, not ${given}; correct it`;
    case 'invalid_value': {
      const allowed = issue.values.map((v) => (typeof v === 'string' ? v : String(v)));
      if (issue.input === undefined) return `missing; set it to ${allowed.join(' or ')}`;
      return `cannot be ${given}; use ${allowed.join(' or ')}`;
    }
    case 'too_small':
      return sizeMessage(issue.origin, 'at least', issue.minimum, given);
    case 'too_big':
      return sizeMessage(issue.origin, 'at most', issue.maximum, given);
    case 'invalid_union':
      return issue.discriminator !== undefined
        ? `missing or not a known value of ${issue.discriminator}; correct it`
        : `${given} fits none of the allowed forms; correct it`;
    case 'invalid_format':
      return `${given} is malformed: ${lowerFirst(issue.message)}; correct it`;
    default:
      return `${lowerFirst(issue.message)}; correct it`;
  }
}

function sizeMessage(origin: string, bound: string, limit: number | bigint, given: string): string {
  const units: Record<string, string> = { string: ' characters', array: ' items', set: ' items', map: ' entries' };
  const unit = units[origin];
  return unit === undefined
    ? `must be ${bound} ${limit}, not ${given}; correct it`
    : `must have ${bound} ${limit}${limit === 1 ? unit.replace(/s$/, '').replace('entrie', 'entry') : unit}; correct it`;
}

/** Short enough for a message and without the content of maps and lists, which may hold a secret. */
function shown(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a map';
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  return String(value);
}

function article(expected: string): string {
  const names: Record<string, string> = { object: 'a map', record: 'a map', array: 'a list', int: 'a whole number' };
  if (names[expected] !== undefined) return names[expected];
  return /^[aeiou]/.test(expected) ? `an ${expected}` : `a ${expected}`;
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}

function adviceFor(near: string | undefined, known: readonly string[]): string {
  if (near !== undefined) return `did you mean ${near}?`;
  if (known.length === 0) return 'remove it';
  return `remove it, or use one of ${[...known].sort().join(', ')}`;
}

/** The known word within a third of the key's length in edits, letter case aside; the nearest of several. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of known) {
    const distance = editDistance(word.toLowerCase().slice(0, 64), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substituted, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

// --- walking a schema. Only what zod documents of its definitions (zod.dev/library-authors) is read. ---

interface Schema {
  readonly _zod: {
    readonly def: {
      readonly type: string;
      readonly shape?: Readonly<Record<string, Schema>>;
      readonly catchall?: Schema;
      readonly element?: Schema;
      readonly innerType?: Schema;
      readonly in?: Schema;
      readonly valueType?: Schema;
      readonly options?: readonly Schema[];
      readonly discriminator?: string;
      readonly getter?: () => Schema;
    };
  };
}

function unwrap(schema: Schema): Schema {
  let current = schema;
  for (let depth = 0; depth < 32; depth++) {
    const { def } = current._zod;
    const inner = def.type === 'lazy' ? def.getter?.() : def.type === 'pipe' ? def.in : def.innerType;
    if (inner === undefined) return current;
    current = inner;
  }
  return current;
}

/** The branch of a union that a value belongs to, when that can be told. */
function branchFor(schema: Schema, value: unknown): Schema | undefined {
  const { def } = schema._zod;
  if (def.type !== 'union') return schema;
  const { discriminator } = def;
  const options = (def.options ?? []).map(unwrap);
  if (discriminator === undefined || typeof value !== 'object' || value === null) {
    const kind = Array.isArray(value) ? 'array' : 'object';
    const fitting = options.filter((option) => option._zod.def.type === kind);
    return fitting.length === 1 ? fitting[0] : undefined;
  }
  const tag = (value as Record<string, unknown>)[discriminator];
  return options.find((option) => {
    const tagSchema = option._zod.def.shape?.[discriminator] as (Schema & z.ZodType) | undefined;
    return tagSchema?.safeParse(tag).success === true;
  });
}

function visitUnknownKeys(
  wrapped: Schema,
  value: unknown,
  path: FieldPath,
  report: (path: FieldPath, key: string, known: readonly string[]) => void,
): void {
  const schema = branchFor(unwrap(wrapped), value);
  if (schema === undefined || typeof value !== 'object' || value === null) return;
  const { def } = schema._zod;
  if (def.type === 'array' && Array.isArray(value) && def.element !== undefined) {
    for (const [i, item] of value.entries()) visitUnknownKeys(def.element, item, [...path, i], report);
  } else if (def.type === 'record' && def.valueType !== undefined && !Array.isArray(value)) {
    for (const [key, item] of Object.entries(value)) visitUnknownKeys(def.valueType, item, [...path, key], report);
  } else if (def.type === 'object' && def.shape !== undefined && !Array.isArray(value)) {
    const open = def.catchall !== undefined && def.catchall._zod.def.type !== 'never';
    for (const [key, item] of Object.entries(value)) {
      const field = Object.hasOwn(def.shape, key) ? def.shape[key] : undefined;
      if (field !== undefined) visitUnknownKeys(field, item, [...path, key], report);
      else if (!open) report(path, key, Object.keys(def.shape));
    }
  }
}

function knownKeysAt(schema: Schema, path: FieldPath): string[] {
  let current: Schema | undefined = unwrap(schema);
  for (const part of path) {
    const def: Schema['_zod']['def'] | undefined = current?._zod.def;
    const next: Schema | undefined =
      typeof part === 'number' ? def?.element : (def?.shape?.[part] ?? def?.valueType ?? undefined);
    current = next === undefined ? undefined : unwrap(next);
  }
  return Object.keys(current?._zod.def.shape ?? {});
}
