import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { formatProblems, loadConfigFile, parseConfig, parseYamlDocuments } from '../../../src/base/config-file.ts';
import { CountersignError } from '../../../src/base/errors.ts';
import { EXIT, errorCodeOfGrpcStatus, exitCodeOf, grpcStatusOf } from '../../../src/base/exit-codes.ts';

const workload = z.strictObject({ name: z.string(), addresses: z.array(z.string()).min(1) });
const schema = z.object({
  kind: z.literal('AgentConfig'),
  lease: z.object({ seconds: z.number().int().min(1) }).default({ seconds: 30 }),
  mode: z.enum(['enforce', 'observe']).default('enforce'),
  workloads: z.array(workload).default([]),
  labels: z.record(z.string(), z.string()).default({}),
});

function messageOf(act: () => unknown): string {
  try {
    act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(CountersignError);
    expect((thrown as CountersignError).code).toBe('bad-input');
    return (thrown as CountersignError).message;
  }
  throw new Error('nothing was thrown');
}
const problemsOf = (text: string) => messageOf(() => parseConfig('a.yaml', text, schema)).split('\n');

describe('a configuration file', () => {
  it('becomes a typed value with its defaults', () => {
    const value = parseConfig(
      'a.yaml',
      'kind: AgentConfig\nworkloads:\n  - name: a\n    addresses: [10.0.0.1]\n',
      schema,
    );
    expect(value.lease.seconds).toBe(30);
    expect(value.workloads[0]?.addresses).toEqual(['10.0.0.1']);
  });

  it('names an unknown key by line and suggests the nearest known one, though the schema is lax', () => {
    expect(problemsOf('kind: AgentConfig\nlease:\n  second: 3\n')).toEqual([
      'a.yaml:3: lease.second: unknown field; did you mean seconds?',
    ]);
    expect(problemsOf('kind: AgentConfig\nzzzzzzz: 3\n')).toEqual([
      'a.yaml:2: zzzzzzz: unknown field; remove it, or use one of kind, labels, lease, mode, workloads',
    ]);
  });

  it('names unknown keys inside lists, once, where the schema is strict', () => {
    const text = 'kind: AgentConfig\nworkloads:\n  - name: a\n    addresses: [x]\n  - name: b\n    adresses: [x]\n';
    expect(problemsOf(text)).toEqual(['a.yaml:6: workloads[1].adresses: unknown field; did you mean addresses?']);
  });

  it('tells all problems at once, in the order of their lines', () => {
    expect(problemsOf('kind: Other\nlease:\n  seconds: 0\nmode: off\nlabels:\n  a/b: 3\n')).toEqual([
      'a.yaml:1: kind: cannot be "Other"; use AgentConfig',
      'a.yaml:3: lease.seconds: must be at least 1, not 0; correct it',
      'a.yaml:4: mode: cannot be "off"; use enforce or observe',
      'a.yaml:6: labels["a/b"]: must be a string, not 3; put it in quotes',
    ]);
  });

  it('says what a wrong type should have been', () => {
    expect(problemsOf('kind: AgentConfig\nlease: 3\nworkloads: {}\n')).toEqual([
      'a.yaml:2: lease: must be a map, not 3; correct it',
      'a.yaml:3: workloads: must be a list, not a map; correct it',
    ]);
  });

  it('uses the schema’s own words where it has them, fix included', () => {
    const own = z.object({ path: z.string().regex(/^\//, 'must be absolute; begin it with /') });
    expect(messageOf(() => parseConfig('a.yaml', 'path: x', own))).toBe(
      'a.yaml:1: path: must be absolute; begin it with /',
    );
  });

  it('refuses a key that stands twice, by line', () => {
    expect(problemsOf('kind: AgentConfig\nmode: enforce\nmode: observe\n')).toEqual([
      'a.yaml:3: the same key stands twice; keep one of them',
    ]);
  });

  it('refuses broken YAML by line', () => {
    expect(problemsOf('kind: AgentConfig\nlease: [1, 2\n')[0]).toMatch(/^a\.yaml:\d: not valid YAML: .*; mend/);
  });

  it('refuses an empty file and a second document', () => {
    expect(problemsOf('# nothing\n')).toEqual(['a.yaml: the file is empty; write the settings into it']);
    expect(problemsOf('kind: AgentConfig\n---\nkind: AgentConfig\n')).toEqual([
      'a.yaml:3: a second document begins here; a configuration file holds one',
    ]);
  });

  it('refuses aliases that unfold without bound, and a file too large', () => {
    const bomb = ['a: &a [x, x, x, x, x, x, x, x, x]'];
    for (const [name, of] of ['ba', 'cb', 'dc', 'ed', 'fe'].map((s) => [...s] as [string, string])) {
      bomb.push(`${name}: &${name} [*${of}, *${of}, *${of}, *${of}, *${of}, *${of}, *${of}, *${of}, *${of}]`);
    }
    expect(problemsOf(bomb.join('\n'))[0]).toContain('write out what the aliases stand for');
    expect(problemsOf(`kind: ${'x'.repeat(2_000_000)}`)[0]).toContain('split it');
  });

  it('does not fall over deep nesting', () => {
    expect(problemsOf('['.repeat(100_000))[0]).toMatch(/^a\.yaml/);
  });

  it('takes __proto__ for the unknown field it is', () => {
    expect(problemsOf('kind: AgentConfig\n__proto__: {a: 1}\n')[0]).toContain('a.yaml:2: __proto__: unknown field');
    expect(({} as { a?: number }).a).toBeUndefined();
  });

  it('never shows what stands inside a map or list that is wrong', () => {
    expect(problemsOf('kind: [hunter2]\nmode: {token: hunter2}\n').join()).not.toContain('hunter2');
  });

  it('is named when it is missing, is a directory', () => {
    const directory = mkdtempSync(join(tmpdir(), 'cs-config-'));
    const missing = join(directory, 'no.yaml');
    expect(messageOf(() => loadConfigFile(missing, schema))).toBe(
      `${missing}: the file does not exist; create it or correct the path`,
    );
    expect(messageOf(() => loadConfigFile(directory, schema))).toContain('this is a directory');
    const good = join(directory, 'good.yaml');
    writeFileSync(good, 'kind: AgentConfig\n');
    expect(loadConfigFile(good, schema).mode).toBe('enforce');
  });
});

describe('problems', () => {
  it('are one line each, with what is known of the place', () => {
    const at = (line: number | undefined, ...path: (string | number)[]) => ({
      file: 'f',
      line,
      path,
      message: 'm; fix',
    });
    expect(formatProblems([at(undefined), at(3), at(4, 'a', 0, 'b-c', 'd/e', 'f')]).split('\n')).toEqual([
      'f: m; fix',
      'f:3: m; fix',
      'f:4: a[0].b-c["d/e"].f: m; fix',
    ]);
  });
});

describe('YAML documents', () => {
  it('know the line of a field in each document, through lists and aliases', () => {
    const text = 'a: &x\n  b: 1\nc: *x\n---\nd:\n  - e: 1\n    f: 2\n';
    const [first, second] = parseYamlDocuments('p.yaml', text);
    expect(first?.lineOf(['c', 'b'])).toBe(2);
    expect(second?.lineOf(['d', 0, 'f'])).toBe(7);
    expect(second?.lineOf(['d', 0, 'missing'])).toBe(6);
    expect(second?.line).toBe(5);
  });

  it('are parsed or refused as bad input, whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'ab:-[]{}&*!|>\'"#\n ?,%@`1.~') }), (text) => {
        try {
          parseConfig('x.yaml', text, schema);
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(CountersignError);
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('exit codes', () => {
  it('follow from error codes: bad input 2, unreachable 3, "no" 1', () => {
    expect(exitCodeOf('bad-input')).toBe(EXIT.badInput);
    expect(exitCodeOf('unavailable')).toBe(EXIT.unreachable);
    expect(exitCodeOf('permission-denied')).toBe(EXIT.no);
  });

  it('come back through a gRPC status', () => {
    for (const code of ['bad-input', 'not-found', 'already-exists', 'unavailable', 'unauthenticated'] as const) {
      expect(errorCodeOfGrpcStatus(grpcStatusOf(code))).toBe(code);
    }
    expect(errorCodeOfGrpcStatus(2)).toBe('internal');
  });
});
