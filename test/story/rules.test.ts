/** The rules of leases and fences: what docs/architecture.md names stands in the code that keeps it and in the models, and nothing is left out. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';

const root = join(import.meta.dirname, '../..');
const textOf = (folder: string, pattern: RegExp) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => pattern.test(file))
    .map((file) => readFileSync(join(root, folder, file), 'utf8'))
    .join('\n');
const namesIn = (text: string, pattern: RegExp) => [...new Set([...text.matchAll(pattern)].map((m) => m[1]!))];

const page = readFileSync(join(root, 'docs/architecture.md'), 'utf8');
const section = page.slice(page.indexOf('## Leases and fences'), page.indexOf('### One address, two owners'));
const rules = section
  .split('\n')
  .filter((line) => /^\| \d \*\*/.test(line))
  .flatMap((line) => namesIn(line.split('|')[2]!, /`(\w+)`/g));
const models = textOf('test/model', /\.(pml|ts)$/);
const code = textOf('src', /\.ts$/) + textOf('bpf', /\.[ch]$/);

it('each rule that the architecture names stands in the code and in the models', () => {
  expect(rules.length).toBeGreaterThan(40);
  const stands = (text: string) => (name: string) => new RegExp(`(\\b|NO_)${name}\\b`).test(text);
  expect(rules.filter((name) => !stands(code)(name))).toEqual([]);
  expect(rules.filter((name) => !stands(models)(name))).toEqual([]);
});

it('each rule that a model can take away is named', () => {
  const taken = namesIn(models, /\bNO_([A-Z]\w+)/g);
  expect(taken.length).toBeGreaterThan(40);
  expect(taken.filter((name) => !section.includes(`\`${name}\``))).toEqual([]);
});
