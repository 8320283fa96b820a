// The demonstration in the guest, a TAP line for each step, and that it ran by clsact and on the kernel's WireGuard.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DEMO } from '../stage/demo-spec.ts';
import { type AgentStatus, Stage } from '../stage/stage.ts';

/** Not "revoked", which is about speed, and not "encrypted_control", which restarts both agents. */
const STEPS = ['identities', 'first_request', 'auth_map', 'encrypted', 'denied', 'unproven', 'audit'];

interface Line {
  readonly step?: string;
  readonly ok: boolean;
  readonly unmet?: string;
  readonly error?: string;
}

interface Path extends AgentStatus {
  readonly datapath: { readonly attach: string };
  readonly tunnel: { readonly implementation: string };
}

let failures = 0;
function report(ok: boolean, name: string, detail: string): void {
  if (!ok) failures++;
  console.log(`${ok ? 'ok' : 'not ok'} - demo > ${name}`);
  console.log(`# ${detail.replaceAll('\n', '\n# ')}`);
}

const program = join(import.meta.dirname, '../stage/demo.ts');
const demo = spawn(process.execPath, [program, '--json', '--keep', ...STEPS], { stdio: ['ignore', 'pipe', 'pipe'] });
let said = '';
demo.stderr.on('data', (chunk: Buffer) => {
  said += chunk.toString();
});
const seen = new Set<string>();
for await (const text of createInterface({ input: demo.stdout })) {
  const line = JSON.parse(text) as Line;
  if (line.step === undefined) continue;
  seen.add(line.step);
  report(line.ok, line.step, text);
}
for (const step of STEPS) if (!seen.has(step)) report(false, step, `did not run: ${said}`);

const stage = new Stage(DEMO);
for (const { name } of DEMO.nodes) {
  const status = (await stage.status(name)) as Path | undefined;
  const detail = JSON.stringify({ datapath: status?.datapath, tunnel: status?.tunnel });
  report(status?.datapath.attach === 'clsact', `${name} attached its programs by clsact`, detail);
  report(status?.tunnel.implementation === 'kernel', `${name} encrypts with the kernel's WireGuard`, detail);
}
if (failures > 0)
  for (const name of ['server', ...DEMO.nodes.map((n) => n.name)]) console.log(`# ${name}:\n${stage.tail(name)}`);
process.exit(failures === 0 ? 0 : 1);
