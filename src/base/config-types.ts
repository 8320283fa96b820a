/** Field types that configuration schemas share: each error says what is wrong and, after a semicolon, what to do. */
import { z } from 'zod';

/** A string that a parser turns into its own form; the parser's sentence is the error. */
export function parsed<T>(parse: (text: string) => { ok: true; value: T } | { ok: false; error: string }) {
  return z.string().transform((text, context): T => {
    const result = parse(text);
    if (result.ok) return result.value;
    context.addIssue({ code: 'custom', message: `${result.error}; correct it`, input: text });
    return z.NEVER;
  });
}

export const absolutePath = z.string().regex(/^\//, 'must be an absolute path; begin it with /');

export const logLevel = z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info');
