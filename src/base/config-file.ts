/** A YAML file and a zod schema to a typed value, or every problem at once, each with file, line, field and fix. */
import { readFileSync } from 'node:fs';
import type { z } from 'zod';
import { CountersignError } from './errors.ts';
import { checkSchema } from './schema-problems.ts';
import { type FieldPath, parseYamlDocuments, problemsError } from './yaml-document.ts';

export {
  type FieldPath,
  formatPath,
  formatProblems,
  type Problem,
  parseYamlDocuments,
  problemsError,
  type YamlDocument,
} from './yaml-document.ts';
export { checkSchema };

/** The file's text. @throws CountersignError bad-input that names the file and says why it cannot be read. */
export function readTextFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code ?? 'unknown error';
    const why: Record<string, string> = {
      ENOENT: 'the file does not exist; create it or correct the path',
      EACCES: 'the file may not be read; check its owner and mode',
      EISDIR: 'this is a directory; name a file',
      ENOTDIR: 'a part of the path is not a directory; correct the path',
    };
    throw new CountersignError('bad-input', `${path}: ${why[code] ?? `the file cannot be read (${code})`}`, {
      cause: thrown,
    });
  }
}

/**
 * Reads one YAML document and checks it. Keys that the schema does not know are refused, also where the schema is lax.
 * @throws CountersignError bad-input, one line for each problem: `FILE:LINE: field.path: what is wrong; the fix`.
 */
export function loadConfigFile<T>(path: string, schema: z.ZodType<T>): T {
  return parseConfig(path, readTextFile(path), schema);
}

/**
 * What is wrong with a field only once it meets the machine, such as a file that is not there, told as loadConfigFile
 * tells what is wrong in the file itself.
 */
export function fieldError(path: string, field: FieldPath, message: string): CountersignError {
  const [document] = parseYamlDocuments(path, readTextFile(path));
  return problemsError([{ file: path, line: document?.lineOf(field), path: field, message }]);
}

/** As loadConfigFile, from text; `file` is only named in messages. */
export function parseConfig<T>(file: string, text: string, schema: z.ZodType<T>): T {
  const documents = parseYamlDocuments(file, text);
  const [document, second] = documents;
  if (document === undefined) {
    throw problemsError([
      { file, line: undefined, path: [], message: 'the file is empty; write the settings into it' },
    ]);
  }
  if (second !== undefined) {
    const message = 'a second document begins here; a configuration file holds one';
    throw problemsError([{ file, line: second.line, path: [], message }]);
  }
  const checked = checkSchema(document, schema);
  if (!checked.ok) throw problemsError(checked.error);
  return checked.value;
}
