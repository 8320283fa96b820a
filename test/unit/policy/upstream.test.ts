import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { parseAddress } from '../../../src/model/address.ts';
import type { IdentityRow, NamedPort } from '../../../src/model/identity.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  type SecurityIdentity,
  securityIdentity,
} from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { compilePolicy, recompile } from '../../../src/policy/compile.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { kernelLookup, withDelta } from './kernel-lookup.ts';

interface Example {
  readonly example: string;
  readonly source: string;
  readonly says: string;
  readonly workloads?: Readonly<Record<string, Readonly<Record<string, string>>>>;
  readonly ports?: Readonly<Record<string, Readonly<Record<string, string>>>>;
  readonly node?: Readonly<Record<string, string>>;
  readonly policy: string;
  readonly l7?: 'ignore-with-warning';
  readonly verdicts?: string;
  readonly refused?: readonly string[];
}

const FIELDS = ['example', 'source', 'says', 'workloads', 'ports', 'node', 'policy', 'l7', 'verdicts', 'refused'];
const PROTOCOLS: Readonly<Record<string, number>> = { tcp: 6, udp: 17, sctp: 132, icmp: 1, icmpv6: 58 };
const ROW = /^(\S+)\s+(\S+)\s+([a-z0-9]+)\/(\d+)\s+(allow|deny|auth)$/;

const folder = join(import.meta.dirname, '../../policies/upstream');
const pages = ['cilium', 'kubernetes'].flatMap((project) =>
  readdirSync(join(folder, project))
    .sort()
    .map((file) => ({
      page: `${project}/${file}`,
      examples: parse(readFileSync(join(folder, project, file), 'utf8')) as Example[],
    })),
);

function rowsOf({ workloads = {}, ports = {} }: Example): IdentityRow[] {
  return Object.entries(workloads).map(([name, labels], i) => ({
    identity: securityIdentity(256 + i),
    spiffeId: spiffeId(`spiffe://example.org/${name}`),
    labels,
    nodes: [],
    ports: Object.entries(ports[name] ?? {}).map(([port, where]): NamedPort => {
      const [protocol, number] = where.split('/');
      return { name: port, protocol: PROTOCOLS[protocol!]!, port: Number(number) };
    }),
  }));
}

/** What the table says an example does, as the compiler and as the kernel's maps would have it. */
function judge(example: Example) {
  const { policies, warnings } = parsePolicies('example.yaml', example.policy, { l7: example.l7 });
  const rows = rowsOf(example);
  const locals = rows.map(({ identity }) => identity);
  const compiled = compilePolicy(policies, rows, locals, { nodeLabels: example.node });
  const kernel = kernelLookup(compiled.tables);
  // The same by way of one workload after another, as they come to a cluster.
  let grown = compilePolicy(policies, [], [], { nodeLabels: example.node });
  let written = grown.tables;
  rows.forEach((_, i) => {
    const next = recompile(grown, rows.slice(0, i + 1), locals.slice(0, i + 1));
    written = withDelta(written, next.delta);
    grown = next.compiled;
  });
  const grownKernel = kernelLookup(written);

  const identityOf = (name: string): SecurityIdentity => {
    if (name === 'host') return IDENTITY_HOST;
    if (name === 'remote-node') return IDENTITY_REMOTE_NODE;
    const address = parseAddress(name);
    if (address !== undefined) return compiled.identityOfAddress(address);
    const row = rows.find((r) => r.spiffeId === `spiffe://example.org/${name}`);
    if (row === undefined) throw new Error(`${name} is neither a workload of the example nor an address`);
    return row.identity;
  };
  const ask = (line: string) => {
    const [, fromName, toName, protocolName, portText] = ROW.exec(line) ?? [];
    const protocol = PROTOCOLS[protocolName ?? ''];
    if (fromName === undefined || toName === undefined || protocol === undefined)
      throw new Error(`not a line of the table: ${line}`);
    const [from, to, port] = [identityOf(fromName), identityOf(toName), Number(portText)];
    const decision = compiled.decide(from, to, protocol, port);
    // The host has hooks of its own only where some policy selects it.
    const hasHook = (name: string) => example.workloads?.[name] !== undefined || (name === 'host' && example.node);
    const hooksOf = (lookup: typeof kernel) => [
      ...(hasHook(fromName) ? [lookup('egress', from, to, protocol, port)] : []),
      ...(hasHook(toName) ? [lookup('ingress', to, from, protocol, port)] : []),
    ];
    return { decided: word([decision]), kernel: word(hooksOf(kernel)), grown: word(hooksOf(grownKernel)) };
  };
  return { warnings, ask };
}

function word(verdicts: readonly { readonly verdict: string; readonly authType: string }[]): string {
  if (verdicts.length === 0 || verdicts.some(({ verdict }) => verdict === 'deny')) return 'deny';
  return verdicts.some(({ authType }) => authType !== 'none') ? 'auth' : 'allow';
}

const linesOf = ({ verdicts = '' }: Example) => verdicts.split('\n').filter((line) => line.trim() !== '');

describe.each(pages)('$page', ({ examples }) => {
  const stated = examples.filter(({ refused }) => refused === undefined);
  const refused = examples.filter((example) => example.refused !== undefined);

  it.each(stated)('$example: $says', (example) => {
    const { ask } = judge(example);
    const lines = linesOf(example);
    const wanted = lines.map((line) => {
      const verdict = line.split(/\s+/).at(-1);
      return `${line}, in the kernel ${verdict}, there step by step ${verdict}`;
    });
    const told = lines.map((line) => {
      const { decided, kernel, grown } = ask(line);
      return `${line.replace(/\S+$/, decided)}, in the kernel ${kernel}, there step by step ${grown}`;
    });
    expect(told).toEqual(wanted);
  });

  if (refused.length > 0) {
    it.each(refused)('refuses, by the name of the field, $example', ({ policy, refused: fields }) => {
      let message = '';
      try {
        parsePolicies('example.yaml', policy);
      } catch (thrown) {
        message = (thrown as Error).message;
      }
      for (const field of fields!)
        expect(message).toMatch(new RegExp(`^example\\.yaml:\\d+: ${literal(field)}.*: .+; .+$`, 'm'));
      expect(message.split('\n').every((line) => fields!.some((field) => line.includes(field)))).toBe(true);
    });
  }
});

function literal(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

describe('the tables', () => {
  const all = pages.flatMap(({ examples }) => examples);

  it('hold enough to be believed', () => {
    const lines = all.flatMap(linesOf);
    expect(all.length).toBeGreaterThanOrEqual(125);
    expect(lines.length).toBeGreaterThanOrEqual(500);
    for (const verdict of ['allow', 'deny', 'auth']) expect(lines.some((line) => line.endsWith(verdict))).toBe(true);
  });

  it.each(all)('$example: says where it stands, and each line is one', (example) => {
    expect(Object.keys(example).filter((field) => !FIELDS.includes(field))).toEqual([]);
    expect(example.source.length * example.says.length).toBeGreaterThan(0);
    expect((example.verdicts === undefined) !== (example.refused === undefined)).toBe(true);
    for (const line of linesOf(example)) expect(line).toMatch(ROW);
  });

  it('tell of what is left out on request', () => {
    const asked = all.filter(({ l7 }) => l7 !== undefined);
    expect(asked.length).toBeGreaterThan(0);
    for (const example of asked)
      expect(
        judge(example)
          .warnings.map((w) => w.message)
          .join(),
      ).toMatch(/rules/);
  });
});
