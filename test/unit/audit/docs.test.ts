import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '../../..');

test('docs/audit-events.md lists exactly the kinds there are', () => {
  const model = readFileSync(join(root, 'src/model/audit-event.ts'), 'utf8');
  const union = /export type AuditKind =([^;]+);/.exec(model)![1]!;
  const page = readFileSync(join(root, 'docs/audit-events.md'), 'utf8');
  const table = page.slice(page.indexOf('## Kinds'), page.indexOf('## What proves'));
  const names = (text: string, quote: string) =>
    [...text.matchAll(new RegExp(`${quote}([a-z]+\\.[a-z_]+)${quote}`, 'g'))].map((m) => m[1]).sort();
  expect(names(table, '`')).toEqual(names(union, "'"));
});
