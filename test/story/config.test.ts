import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { serverConfigSchema } from '../../identity/config.ts';
import { entriesFileSchema } from '../../identity/entry-spec.ts';
import { agentConfigSchema } from '../../src/agent/config.ts';
import { policyTestSchema } from '../../src/cli/policy/test-file.ts';

const page = readFileSync(join(import.meta.dirname, '../../docs/configuration.md'), 'utf8');

interface JsonSchema {
  readonly type?: string;
  readonly properties?: Record<string, JsonSchema>;
  readonly items?: JsonSchema;
}

/** "peer.listen", "endpoints[].name": every field that holds a value, not those that hold fields. */
function fieldsOf(schema: JsonSchema, path = ''): string[] {
  if (schema.items?.properties !== undefined) return fieldsOf(schema.items, `${path}[]`);
  if (schema.properties === undefined) return [path];
  return Object.entries(schema.properties).flatMap(([name, inner]) =>
    fieldsOf(inner, path === '' ? name : `${path}.${name}`),
  );
}

function documented(kind: string): string[] {
  const section = page.split(/^## /m).find((part) => part.includes(`\`kind: ${kind}\``)) ?? '';
  const rows = section.split('\n').filter((line) => line.startsWith('| `'));
  return rows.flatMap((row) => [...row.split('|')[1]!.matchAll(/`([^`]+)`/g)].map((m) => m[1]!));
}

describe.each([
  ['AgentConfig', agentConfigSchema],
  ['ServerConfig', serverConfigSchema],
  ['RegistrationEntries', entriesFileSchema],
] as const)('docs/configuration.md on %s', (kind, schema) => {
  const json = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as JsonSchema;
  // Both files of an SVID are told of in its own row; the entries file begins like the others.
  const real = fieldsOf(json)
    .map((field) => field.replace(/^(endpoints\[\]\.svid)\..*/, '$1'))
    .filter((field) => kind !== 'RegistrationEntries' || field.startsWith('entries'));

  it('names every field and no others', () => {
    expect([...new Set(documented(kind))].sort()).toEqual([...new Set(real)].sort());
  });
});

it('docs/policies.md names every field of a PolicyTest and no others', () => {
  const text = readFileSync(join(import.meta.dirname, '../../docs/policies.md'), 'utf8');
  const section = text.slice(text.indexOf('## In CI'));
  const rows = section.split('\n').filter((line) => line.startsWith('| `'));
  const said = rows.flatMap((row) => [...row.split('|')[1]!.matchAll(/`([^`]+)`/g)].map((m) => m[1]!));
  const real = fieldsOf(z.toJSONSchema(policyTestSchema, { io: 'input' }) as JsonSchema);
  expect(said.sort()).toEqual(real.filter((field) => !['apiVersion', 'kind'].includes(field)).sort());
});
