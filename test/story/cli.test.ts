import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { addAgentCommands } from '../../src/cli/commands/agent.ts';
import { addAuditCommands } from '../../src/cli/commands/audit.ts';
import { addBundleCommands } from '../../src/cli/commands/bundle.ts';
import { addCaCommands } from '../../src/cli/commands/ca.ts';
import { addDatapathCommands } from '../../src/cli/commands/datapath.ts';
import { addEnforcementCommands } from '../../src/cli/commands/enforcement.ts';
import { addMigrateCommands } from '../../src/cli/commands/migrate.ts';
import { addServerCommands } from '../../src/cli/commands/server.ts';

const root = join(import.meta.dirname, '../..');
const page = readFileSync(join(root, 'docs/cli.md'), 'utf8');

const program = new Command('countersign');
addAgentCommands(program);
addServerCommands(program);
addCaCommands(program);
addBundleCommands(program);
addAuditCommands(program);
addDatapathCommands(program);
addEnforcementCommands(program);
addMigrateCommands(program);

interface Leaf {
  readonly name: string;
  readonly command: Command;
}

/** Commands that do something; those that only hold others are left out. */
function leaves(command: Command, path: readonly string[]): Leaf[] {
  if (command.commands.length === 0) return [{ name: path.join(' '), command }];
  return command.commands.flatMap((child) => leaves(child, [...path, child.name()]));
}
const commands = leaves(program, ['countersign']);

/** The text below each "### countersign …" up to the next heading. */
const sections = new Map(
  page
    .split(/^(?=#{2,3} )/m)
    .filter((part) => part.startsWith('### countersign'))
    .map((part) => [part.slice(4, part.indexOf('\n')).trim(), part] as const),
);

describe('docs/cli.md', () => {
  it('has a section for each command of the program, and for nothing else', () => {
    expect([...sections.keys()].sort()).toEqual(commands.map(({ name }) => name).sort());
  });

  it.each(commands)('names the options of $name, and no others', ({ name, command }) => {
    const text = sections.get(name) ?? '';
    const documented = [...text.matchAll(/^- `(--[a-z0-9-]+)|`(?:-o, )?(--[a-z0-9-]+)`/gm)].map((m) => m[1] ?? m[2]!);
    const real = command.options.map((option) => option.long!);
    expect([...new Set(documented)].sort()).toEqual(real.sort());
  });

  it('holds JSON examples that are JSON', () => {
    const blocks = [...page.matchAll(/```json\n(.*?)```/gs)].map((m) => m[1]!);
    expect(blocks.length).toBeGreaterThan(10);
    for (const block of blocks) expect(() => JSON.parse(block), block).not.toThrow();
  });
});

/** "countersign svid revoke --node X" in code, as far as it names commands. */
function invocations(text: string): string[] {
  return [...text.matchAll(/(?:`|\s|\/)countersign ((?:[a-z]+ ?)+)/g)].map((m) => m[1]!.trim());
}

describe('commands that documents and units tell people to run', () => {
  const documents = [
    'README.md',
    ...readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' })
      .filter((f) => f.endsWith('.md'))
      .map((f) => `docs/${f}`),
  ];
  const nouns = new Set(program.commands.map((c) => c.name()));
  const inCode = (text: string) => [...text.matchAll(/`([^`\n]*)`|^ {4}(.*)$/gm)].map((m) => `\`${m[1] ?? m[2]}`);

  it.each(documents)('%s names only commands that exist', (file) => {
    const said = inCode(readFileSync(join(root, file), 'utf8')).flatMap(invocations);
    const wrong = said.filter((text) => {
      const [noun, verb] = text.split(' ');
      const command = program.commands.find((c) => c.name() === noun);
      if (command === undefined) return true;
      return command.commands.length > 0 && !command.commands.some((c) => c.name() === verb);
    });
    expect(wrong).toEqual([]);
  });

  it('systemd units start commands that exist', () => {
    const units = readdirSync(join(root, 'deploy/systemd'));
    expect(units.length).toBeGreaterThan(0);
    for (const unit of units) {
      const text = readFileSync(join(root, 'deploy/systemd', unit), 'utf8');
      const start = /^ExecStart=\S*\/countersign (\S+) (\S+) --config (\S+)$/m.exec(text);
      expect(nouns.has(start?.[1] ?? ''), unit).toBe(true);
      expect(commands.map(({ name }) => name)).toContain(`countersign ${start?.[1]} ${start?.[2]}`);
    }
  });
});
