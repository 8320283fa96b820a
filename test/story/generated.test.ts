import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { parseDropReasons, renderDropReasonsMarkdown } from '../../tools/gen.ts';

const root = join(import.meta.dirname, '../..');
const header = readFileSync(join(root, 'bpf/abi/drop_reasons.h'), 'utf8');

it('docs/drop-reasons.md is what bpf/abi/drop_reasons.h says', () => {
  expect(readFileSync(join(root, 'docs/drop-reasons.md'), 'utf8')).toBe(
    renderDropReasonsMarkdown(parseDropReasons(header)),
  );
});

it('every drop reason stands in the range of its kind and once', () => {
  const reasons = parseDropReasons(header);
  expect(reasons.length).toBeGreaterThan(10);
  expect(new Set(reasons.map((r) => r.code)).size).toBe(reasons.length);
  expect(reasons.every((r) => r.code >= 1 && r.code <= 223 && r.text.length > 10)).toBe(true);
});
