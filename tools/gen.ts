// Makes what is derived from one truth: TypeScript from the protos, drop reasons (TypeScript and docs) from bpf/abi.
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const root = join(import.meta.dirname, '..');

function generateProtos(): void {
  const out = join(root, 'proto/gen');
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const options = [
    'env=node',
    'esModuleInterop=true',
    'outputServices=grpc-js',
    'importSuffix=.ts',
    'enumsAsLiterals=true',
    'forceLong=bigint',
    'oneof=unions-value',
    'useExactTypes=false',
    'outputTypeAnnotations=false',
    'outputJsonMethods=false',
    'outputPartialMethods=true',
    'useOptionals=none',
  ];
  const template = {
    version: 'v2',
    plugins: [
      {
        local: join(root, 'node_modules/.bin/protoc-gen-ts_proto'),
        out,
        opt: options,
        include_imports: true,
        strategy: 'all',
      },
    ],
  };
  execFileSync(join(root, 'node_modules/.bin/buf'), ['generate', '--template', JSON.stringify(template)], {
    cwd: join(root, 'proto'),
    stdio: ['ignore', 'inherit', 'inherit'],
  });
}

interface DropReason {
  readonly name: string;
  readonly code: number;
  readonly text: string;
}

export function parseDropReasons(header: string): DropReason[] {
  const reasons: DropReason[] = [];
  for (const match of header.matchAll(/CS_DROP_([A-Z0-9_]+)\s*=\s*(\d+),\s*\/\*\s*(.*?)\s*\*\//g)) {
    reasons.push({ name: match[1] ?? '', code: Number(match[2]), text: match[3] ?? '' });
  }
  return reasons;
}

export function renderDropReasonsMarkdown(reasons: readonly DropReason[]): string {
  const rows = reasons.map((r) => `| ${r.code} | \`${r.name}\` | ${r.text} |`);
  return [
    '# Drop reasons',
    '',
    'Generated from `bpf/abi/drop_reasons.h` by `npm run gen`. Numbers are never used again for something else.',
    '',
    '| code | name | meaning |',
    '| ---: | --- | --- |',
    ...rows,
    '',
  ].join('\n');
}

function generateDropReasons(): void {
  const reasons = parseDropReasons(readFileSync(join(root, 'bpf/abi/drop_reasons.h'), 'utf8'));
  const lines = [
    '// Generated from bpf/abi/drop_reasons.h by tools/gen.ts.',
    'export const dropReasons = {',
    ...reasons.map((r) => `  ${r.name}: { code: ${r.code}, text: ${JSON.stringify(r.text)} },`),
    '} as const;',
    '',
    'export type DropReason = keyof typeof dropReasons;',
    '',
    'const names = new Map<number, DropReason>(Object.entries(dropReasons).map(([name, r]) => [r.code, name as DropReason]));',
    '',
    '/** The name of a code the kernel reported, or undefined for one this build does not know. */',
    'export function dropReasonName(code: number): DropReason | undefined {',
    '  return names.get(code);',
    '}',
    '',
  ];
  const ts = join(root, 'src/base/registry/drop-reasons.gen.ts');
  mkdirSync(dirname(ts), { recursive: true });
  writeFileSync(ts, lines.join('\n'));
  writeFileSync(join(root, 'docs/drop-reasons.md'), renderDropReasonsMarkdown(reasons));
}

if (import.meta.main) {
  const only = process.argv[2];
  if (only !== 'drop-reasons') generateProtos();
  if (only !== 'protos') generateDropReasons();
}
