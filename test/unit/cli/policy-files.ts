/** Policies in files of a folder of the test's own, and the command that reads them. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, expect } from 'vitest';

export const root = join(import.meta.dirname, '../../..');
/** Where the commands run. */
const folder = mkdtempSync(join(tmpdir(), 'countersign-policy-'));

afterAll(() => rmSync(folder, { recursive: true, force: true }));

export function run(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(join(root, 'bin/countersign'), ['policy', ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, NO_COLOR: '1' },
  });
  return { status, stdout, stderr };
}

export function json(...args: string[]) {
  const { status, stdout, stderr } = run(...args, '-o', 'json');
  expect(stderr).toBe('');
  expect(stdout.trim().split('\n')).toHaveLength(1);
  return { status, value: JSON.parse(stdout) };
}

export function write(name: string, text: string): string {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  return name;
}

export const policy = (name: string, selected: string, rules: string, annotations = '') =>
  `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name}${annotations === '' ? '' : `, annotations: {${annotations}}`}}
spec:
  endpointSelector: {matchLabels: {app: ${selected}}}
${rules}
`;

export const fromApp = (app: string, more = '') => `    - {fromEndpoints: [{matchLabels: {app: ${app}}}]${more}}`;
export const port = (number: number | string, protocol = 'TCP') =>
  `, toPorts: [{ports: [{port: "${number}", protocol: ${protocol}}]}]`;
export const REQUIRED = ', authentication: {mode: required}';

export const entries = (...apps: string[]) =>
  `apiVersion: countersign.dev/v1alpha1
kind: RegistrationEntries
entries:
${apps.map((app) => `  - {id: ${app}, spiffeId: "spiffe://example.org/${app}", node: node-a, selectors: ["unix:uid:1"], labels: {app: ${app}}}`).join('\n')}
`;
