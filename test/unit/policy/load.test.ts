import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CountersignError } from '../../../src/base/errors.ts';
import { type LoadedPolicies, loadPolicies, type PolicyWatch, watchPolicies } from '../../../src/policy/load.ts';

const policy = (name: string) => `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name}}
spec: {endpointSelector: {}, ingress: [{}]}
`;

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'cs-policy-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));
const write = (name: string, text: string) => writeFileSync(join(directory, name), text);

describe('a directory of policies', () => {
  it('is read in the order of its names, without hidden and other files', () => {
    write('b.yaml', policy('second'));
    write('a.yml', policy('first'));
    write('.c.yaml', 'nonsense: [');
    write('README.md', 'nonsense: [');
    expect(loadPolicies(directory).policies.map((p) => p.name)).toEqual(['first', 'second']);
  });

  it('is refused whole, with the problems of all files', () => {
    write('a.yaml', policy('fine'));
    write('b.yaml', policy('bad').replace('[{}]', '[{toNodes: []}]'));
    write('c.yaml', 'nonsense: [');
    write('d.yaml', policy('fine'));
    const load = () => loadPolicies(directory);
    expect(load).toThrow(CountersignError);
    expect(load).toThrow(`${join(directory, 'b.yaml')}:4: spec.ingress[0].toNodes: unknown field`);
    expect(load).toThrow(/c\.yaml:\d: not valid YAML/);
    expect(load).toThrow(`d.yaml:1: metadata.name: fine stands in ${join(directory, 'a.yaml')}:1 already`);
  });

  it('is read with a warning for each rule that looks into the traffic, if it may be passed over', () => {
    const http = '[{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{}]}}]}]';
    write('a.yaml', policy('a').replace('[{}]', http));
    expect(() => loadPolicies(directory)).toThrow('spec.ingress[0].toPorts[0].rules.http: layer 7 rules');
    const { policies, warnings } = loadPolicies(directory, { l7: 'ignore-with-warning' });
    expect(policies.map((p) => p.name)).toEqual(['a']);
    expect(warnings).toMatchObject([{ file: join(directory, 'a.yaml'), line: 4 }]);
  });

  it('is named when it is missing', () => {
    expect(() => loadPolicies(join(directory, 'no'))).toThrow(/no: the directory does not exist; create it/);
  });
});

describe('watching a directory of policies', () => {
  let watch: PolicyWatch | undefined;
  afterEach(() => watch?.close());

  /** Awaitable: what the watch reported, one after the other. */
  function start(since?: string) {
    const reports: (LoadedPolicies | CountersignError)[] = [];
    const waiting: ((report: LoadedPolicies | CountersignError) => void)[] = [];
    const report = (value: LoadedPolicies | CountersignError) => {
      const next = waiting.shift();
      if (next === undefined) reports.push(value);
      else next(value);
    };
    watch = watchPolicies(directory, report, report, { since, debounceMs: 5, pollMs: 50 });
    const next = () =>
      new Promise<LoadedPolicies | CountersignError>((resolve) => {
        const value = reports.shift();
        if (value === undefined) waiting.push(resolve);
        else resolve(value);
      });
    return { next, reports, watch };
  }
  const names = (report: LoadedPolicies | CountersignError) =>
    report instanceof CountersignError ? report.message : report.policies.map((p) => p.name);

  it('reports what is there at once, unless the caller has it already', async () => {
    write('a.yaml', policy('a'));
    const { next } = start();
    expect(names(await next())).toEqual(['a']);
    watch?.close();
    const second = start(loadPolicies(directory).revision);
    await second.watch.check();
    expect(second.reports).toEqual([]);
  });

  it('reports a change, a file that replaces another, and a removal', async () => {
    const { next } = start();
    expect(names(await next())).toEqual([]);
    write('a.yaml', policy('a'));
    expect(names(await next())).toEqual(['a']);
    write('.new', policy('b'));
    renameSync(join(directory, '.new'), join(directory, 'a.yaml'));
    expect(names(await next())).toEqual(['b']);
    rmSync(join(directory, 'a.yaml'));
    expect(names(await next())).toEqual([]);
  });

  it('reports a problem once and no policies with it; then the mended files', async () => {
    write('a.yaml', policy('a'));
    const { next, reports, watch: running } = start();
    await next();
    write('b.yaml', policy('b').replace('[{}]', '[{fromNodes: [{}]}]'));
    expect(names(await next())).toContain('spec.ingress[0].fromNodes: nodes are not told apart as peers here');
    await running.check();
    expect(reports).toEqual([]);
    write('b.yaml', policy('b'));
    expect(names(await next())).toEqual(['a', 'b']);
  });

  it('reports all files after a change of one, and all problems', async () => {
    write('a.yaml', policy('a'));
    write('b.yaml', policy('b').replace('spec', 'spek'));
    write('c.yaml', policy('c'));
    const { next } = start();
    expect(names(await next())).toContain('b.yaml:4: spek: unknown field');
    write('c.yaml', policy('c').replace('spec', 'spek'));
    expect(String(names(await next())).split('\n')).toHaveLength(2);
    write('c.yaml', policy('d'));
    expect(String(names(await next())).split('\n')).toHaveLength(1);
    rmSync(join(directory, 'b.yaml'));
    expect(names(await next())).toEqual(['a', 'd']);
  });

  it('reports a directory that went away, once, and finds it again', async () => {
    write('a.yaml', policy('a'));
    const { next, reports, watch: running } = start();
    await next();
    rmSync(directory, { recursive: true });
    expect(names(await next())).toContain('does not exist');
    await running.check();
    expect(reports).toEqual([]);
    mkdirSync(directory);
    write('a.yaml', policy('c'));
    let report = names(await next());
    while (report.length === 0) report = names(await next()); // seen between mkdir and write
    expect(report).toEqual(['c']);
  });

  it('reports nothing after it was closed', async () => {
    const { next, reports, watch: running } = start();
    await next();
    running.close();
    write('a.yaml', policy('a'));
    await running.check();
    expect(reports).toEqual([]);
  });
});
