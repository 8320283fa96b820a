/** What commands print: the JSON documents as they are, or tables and lines for a person. */
import { colours as pc } from './colours.ts';

export type Format = 'text' | 'json';

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

/** Columns as wide as their widest cell. Nothing but `none` for an empty table. */
export function table(
  headings: readonly string[],
  rows: readonly (readonly (string | number)[])[],
  none: string,
): string {
  if (rows.length === 0) return none;
  const cells = [headings, ...rows.map((row) => row.map(String))];
  const widths = headings.map((_, i) => Math.max(...cells.map((row) => row[i]?.length ?? 0)));
  return cells
    .map((row, n) => {
      const line = row.map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i]!))).join('  ');
      return n === 0 ? pc.dim(line) : line;
    })
    .join('\n');
}

/** A nested document as indented "name: value" lines. */
export function lines(value: unknown, indent = ''): string {
  if (value === null || typeof value !== 'object') return `${indent}${String(value)}`;
  if (Array.isArray(value)) {
    if (value.length === 0) return `${indent}none`;
    return value
      .map((item) => (isLeaf(item) ? `${indent}- ${String(item)}` : `${indent}-\n${lines(item, `${indent}  `)}`))
      .join('\n');
  }
  return Object.entries(value)
    .map(([name, v]) =>
      isLeaf(v) ? `${indent}${name}: ${String(v)}` : `${indent}${name}:\n${lines(v, `${indent}  `)}`,
    )
    .join('\n');
}

const isLeaf = (value: unknown): boolean => value === null || typeof value !== 'object';

export function seconds(ms: number): string {
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)}s`;
  const whole = Math.round(ms / 1000);
  return `${Math.floor(whole / 60)}m${whole % 60}s`;
}
