import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '../..');

function documents(): string[] {
  const inDocs = readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' }).filter((f) =>
    f.endsWith('.md'),
  );
  return ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', ...inDocs.map((f) => `docs/${f}`)];
}

const TOP = 'bpf|native|ca|identity|src|proto|deploy|test|docs|tools|bin|\\.ci';

/** Paths in backticks that begin in a folder of the project; a glob stands for its folder, `file.ts:name` for the file. */
function pathsIn(text: string): string[] {
  const found = text.matchAll(new RegExp(`\`((?:${TOP})/[A-Za-z0-9._/*-]*)(?::[\\w$.]+)?\``, 'g'));
  return [...found].map((m) => m[1]!);
}

/** A name after a path, as in `src/pki/verify.ts:verifyX509Svid`: a reader looks for it there. */
function namesIn(text: string): { path: string; name: string }[] {
  const found = text.matchAll(new RegExp(`\`((?:${TOP})/[A-Za-z0-9._/-]*):([\\w$.]+)\``, 'g'));
  return [...found].map((m) => ({ path: m[1]!, name: m[2]! }));
}

function linksIn(text: string): string[] {
  return [...text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)].map((m) => m[1]!).filter((l) => !/^(https?|mailto):/.test(l));
}

describe.each(documents())('%s', (document) => {
  const text = readFileSync(join(root, document), 'utf8');

  it('names only files and folders that exist', () => {
    const missing = pathsIn(text).filter((p) => !existsSync(join(root, p.includes('*') ? dirname(p) : p)));
    expect(missing).toEqual([]);
  });

  it('names only functions and types that stand where it says', () => {
    const missing = namesIn(text).filter(({ path, name }) => {
      const file = join(root, path);
      return (
        !existsSync(file) ||
        !new RegExp(`\\b${name.split('.').at(-1)!.replace(/\$/g, '\\$')}\\b`).test(readFileSync(file, 'utf8'))
      );
    });
    expect(missing).toEqual([]);
  });

  it('links only to what exists', () => {
    const missing = linksIn(text).filter((l) => !existsSync(join(root, dirname(document), l)));
    expect(missing).toEqual([]);
  });
});

describe('the two stories', () => {
  it.each(['packet', 'certificate'])('%s names at least ten places in the code, in order', (story) => {
    const text = readFileSync(join(root, `docs/stories/${story}.md`), 'utf8');
    expect(pathsIn(text).length).toBeGreaterThanOrEqual(10);
  });
});
