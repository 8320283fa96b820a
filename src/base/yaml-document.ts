/** YAML text to plain values that still know their lines. Bounded: size, documents, aliases; duplicate keys are refused. */
import {
  type Document,
  isAlias,
  isMap,
  isNode,
  isPair,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  parseAllDocuments,
} from 'yaml';
import { asError, CountersignError } from './errors.ts';

export type FieldPath = readonly (string | number)[];

/** One thing that is wrong in a file. `message` says what, then after a semicolon the fix. */
export interface Problem {
  readonly file: string;
  /** From 1; undefined when it concerns the file as such. */
  readonly line: number | undefined;
  readonly path: FieldPath;
  readonly message: string;
}

export interface YamlDocument {
  readonly file: string;
  /** Plain objects, arrays, strings, numbers, booleans, null. */
  readonly value: unknown;
  /** First line of the document, from 1. */
  readonly line: number;
  /** Line of the field; of the nearest enclosing one when the field is not there. */
  lineOf(path: FieldPath): number;
}

const MAX_BYTES = 1024 * 1024;
const MAX_DOCUMENTS = 1_000;
/** Nodes that aliases may stand for, against documents that unfold without bound. */
const MAX_ALIASES = 100;

/**
 * All documents of a file; empty ones are left out.
 * @throws CountersignError bad-input with every syntax problem, by line.
 */
export function parseYamlDocuments(file: string, text: string): YamlDocument[] {
  const fail = (message: string, line?: number): never => {
    throw problemsError([{ file, line, path: [], message }]);
  };
  if (Buffer.byteLength(text) > MAX_BYTES) fail(`the file has more than ${MAX_BYTES} bytes; split it`);
  const counter = new LineCounter();
  let parsed: Document.Parsed[] = [];
  try {
    const all = parseAllDocuments(text, { lineCounter: counter, uniqueKeys: true, prettyErrors: false });
    parsed = [...(all as Iterable<Document.Parsed>)];
  } catch (thrown) {
    fail(`cannot be read as YAML: ${asError(thrown).message}; flatten what is nested too deeply`);
  }
  if (parsed.length > MAX_DOCUMENTS) fail(`the file has more than ${MAX_DOCUMENTS} documents; split it`);
  const lineAt = (offset: number) => Math.max(1, counter.linePos(offset).line);
  const problems = parsed.flatMap((document) =>
    [...document.errors, ...document.warnings].map((e) => ({
      file,
      line: lineAt(e.pos[0]),
      path: [],
      message: `${yamlMessage(e.code, e.message)}`,
    })),
  );
  if (problems.length > 0) throw problemsError(problems);
  return parsed
    .filter((document) => document.contents !== null && !isEmptyScalar(document.contents))
    .map((document) => openDocument(file, document, lineAt));
}

/** `FILE:LINE: field.path: what is wrong; the fix`, one line for each problem, in the order of the files. */
export function formatProblems(problems: readonly Problem[]): string {
  return problems
    .map(({ file, line, path, message }) => {
      const place = line === undefined ? file : `${file}:${line}`;
      return path.length === 0 ? `${place}: ${message}` : `${place}: ${formatPath(path)}: ${message}`;
    })
    .join('\n');
}

export function problemsError(problems: readonly Problem[]): CountersignError {
  return new CountersignError('bad-input', formatProblems(problems));
}

/** spec.ingress[0].toPorts; a key that is no plain word is quoted: metadata.labels["a/b"]. */
export function formatPath(path: FieldPath): string {
  let out = '';
  for (const part of path) {
    if (typeof part === 'number') out += `[${part}]`;
    else if (/^[A-Za-z_][\w-]*$/.test(part)) out += out === '' ? part : `.${part}`;
    else out += `[${JSON.stringify(part)}]`;
  }
  return out;
}

function openDocument(file: string, document: Document.Parsed, lineAt: (offset: number) => number): YamlDocument {
  const line = lineOfNode(document.contents, lineAt) ?? 1;
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: MAX_ALIASES });
  } catch (thrown) {
    const message = `cannot be read as YAML: ${asError(thrown).message}; write out what the aliases stand for`;
    throw problemsError([{ file, line, path: [], message }]);
  }
  const lineOf = (path: FieldPath): number => {
    let node: unknown = document.contents;
    let found = line;
    for (const part of path) {
      if (isAlias(node)) node = node.resolve(document);
      let next: unknown;
      if (isMap(node)) {
        const pair = node.items.find((item) => isPair(item) && String(keyOf(item.key)) === String(part));
        if (pair === undefined) return found;
        found = lineOfNode(pair.key, lineAt) ?? found;
        next = pair.value;
      } else if (isSeq(node) && typeof part === 'number') {
        next = node.items[part];
        found = lineOfNode(next, lineAt) ?? found;
      }
      if (next === undefined || next === null) return found;
      node = next;
    }
    return found;
  };
  return { file, value, line, lineOf };
}

function keyOf(key: unknown): unknown {
  return isScalar(key) ? key.value : key;
}

function lineOfNode(node: unknown, lineAt: (offset: number) => number): number | undefined {
  const range = isNode(node) ? (node as Node).range : undefined;
  return range ? lineAt(range[0]) : undefined;
}

function isEmptyScalar(node: unknown): boolean {
  return isScalar(node) && node.value === null && (node.source === undefined || node.source === '');
}

function yamlMessage(code: string, message: string): string {
  if (code === 'DUPLICATE_KEY') return 'the same key stands twice; keep one of them';
  const text = message.replace(/\s+/g, ' ').trim();
  return `not valid YAML: ${text.charAt(0).toLowerCase()}${text.slice(1)}; mend the syntax here`;
}
