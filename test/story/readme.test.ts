import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '../..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const names = (text: string) => [...text.matchAll(/^\| `([a-z_-]+)` \|/gm)].map((m) => m[1]!);

describe('README.md', () => {
  it('lists the steps of the tour, in their order', () => {
    const index = read('test/stage/tour/index.ts');
    const imports = [...index.matchAll(/from '\.\/([a-z-]+)\.ts'/g)].map((m) => read(`test/stage/tour/${m[1]}.ts`));
    const stepOf = (variable: string) => {
      const source = imports.find((text) => text.includes(`export const ${variable}: Step`)) ?? '';
      const at = source.indexOf(`export const ${variable}: Step`);
      return /name: '([a-z_]+)'/.exec(source.slice(at))?.[1];
    };
    const tour = /tour: readonly Step\[\] = \[([^\]]*)\]/.exec(index)?.[1] ?? '';
    const steps = tour.match(/\w+/g)?.map(stepOf) ?? [];
    expect(steps.length).toBeGreaterThan(5);
    expect(names(read('README.md'))).toEqual(steps);
  });

  it('gives the two commands as ./dev knows them', () => {
    const dev = read('dev');
    for (const command of ['./dev demo', './dev test']) {
      expect(read('README.md')).toContain(`    ${command}`);
      expect(dev).toContain(`  ${command}`);
    }
  });
});

describe('docs/performance.md', () => {
  it('lists the benchmarks that there are', () => {
    const list = /const names = \[([^\]]*)\]/.exec(read('test/bench/main.ts'))?.[1] ?? '';
    const benches = [...list.matchAll(/'([a-z-]+)'/g)].map((m) => m[1]!);
    const page = read('docs/performance.md');
    expect(names(page.slice(0, page.indexOf('## Figures'))).sort()).toEqual(benches.sort());
  });
});

describe('docs/architecture.svg', () => {
  const svg = read('docs/architecture.svg');

  it('is well-formed, has a title and a description, and loads nothing', () => {
    const open: string[] = [];
    for (const [, closing, name, self] of svg.matchAll(/<(\/?)([a-zA-Z]+)(?:\s+[\w:-]+="[^"<]*")*\s*(\/?)>/g)) {
      if (closing === '/') expect(open.pop()).toBe(name);
      else if (self !== '/') open.push(name!);
    }
    expect(open).toEqual([]);
    // Whatever the pattern above passed over would leave a bracket behind.
    expect(svg.replace(/<\/?[a-zA-Z]+(?:\s+[\w:-]+="[^"<]*")*\s*\/?>/g, '')).not.toMatch(/[<>&]/);
    expect(svg).toMatch(/<title id="title">.+<\/title>/);
    expect(svg).toMatch(/<desc id="desc">.+<\/desc>/);
    expect(svg).not.toMatch(/href|<script|<image|url\((?!#)/);
  });

  it('keeps its texts inside the picture', () => {
    const [, width, height] = /viewBox="0 0 (\d+) (\d+)"/.exec(svg)!;
    for (const [, x, y] of svg.matchAll(/<text x="(\d+)" y="(\d+)"/g)) {
      expect(Number(x)).toBeLessThan(Number(width));
      expect(Number(y)).toBeLessThan(Number(height));
    }
  });
});
