/** The tour as a user starts it: every step with its figures, and nothing left behind however it ends. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DEMO } from '../stage/demo-spec.ts';
import { sh, until } from '../stage/shell.ts';

const PROGRAM = join(import.meta.dirname, '../stage/demo.ts');
const LOCK = '/run/countersign-demo.pid';
const ALL =
  'identities first_request auth_map encrypted encrypted_control denied unproven agent_killed agent_back ip_reuse partition revoked audit'.split(
    ' ',
  );

interface Demo {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
  /** Exit status, or the signal's name. */
  readonly ended: Promise<number | string>;
}

/** In a process group of its own, as a shell starts it: Ctrl-C reaches all of the group. */
function demo(...args: string[]): Demo {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let [stdout, stderr] = ['', ''];
  child.stdout!.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr!.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const ended = new Promise<number | string>((resolve) => {
    child.once('close', (code, signal) => resolve(code ?? signal ?? 'unknown'));
  });
  return { child, stdout: () => stdout, stderr: () => stderr, ended };
}

const jsonLines = (text: string) =>
  text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

/** Everything of the demonstration that can be seen on the host. Empty lists: nothing of it is left. */
function leftovers() {
  const netns = existsSync('/run/netns') ? readdirSync('/run/netns') : [];
  return {
    namespaces: netns.filter((n) => n.startsWith(`${DEMO.prefix}-`)),
    processes: processes(),
    mounts: readFileSync('/proc/mounts', 'utf8')
      .split('\n')
      .filter((line) => line.includes(DEMO.dir)),
    files: readdirSync('/run').filter((f) => f.startsWith('countersign-demo') || f.startsWith(`${DEMO.prefix}-`)),
    sockets: existsSync('/var/run/wireguard')
      ? readdirSync('/var/run/wireguard').filter((f) => f.startsWith('cs-wg-'))
      : [],
    hostDevices: [...hostDevices()].filter((d) => !devicesBefore.has(d)),
    qdiscs: sh('tc', ['qdisc', 'show']).includes('clsact'),
  };
}
const NOTHING = { namespaces: [], processes: [], mounts: [], files: [], sockets: [], hostDevices: [], qdiscs: false };

function processes(): string[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((pid) => {
      try {
        const environ = `\0${readFileSync(`/proc/${pid}/environ`, 'latin1')}`;
        const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
        const ours =
          environ.includes(`\0COUNTERSIGN_STAGE=${DEMO.prefix}\0`) || command.includes('wireguard-go -f cs-wg-');
        return ours ? [`${pid} ${command}`] : [];
      } catch {
        return []; // ended meanwhile
      }
    });
}

const hostDevices = () => new Set(sh('ip', ['-o', 'link']).match(/^\d+: [^:@]+/gm) ?? []);
const devicesBefore = hostDevices();

const down = () => spawnSync(process.execPath, [PROGRAM, '--down'], { encoding: 'utf8' });

beforeAll(async () => {
  // Somebody else's demonstration is not pulled away.
  await until('no other demonstration to run', 90_000, () => (down().status === 0 ? true : undefined));
});
afterAll(() => {
  down();
});

test('every step holds, with its figures, and nothing is left behind', async () => {
  const run = demo('--json');
  const status = await run.ended;
  const lines = jsonLines(run.stdout());
  const summary = lines.pop();
  expect(summary, run.stderr()).toMatchObject({ summary: true, ok: true, failed: [] });
  expect(lines.map((l) => l.step)).toEqual(ALL);
  for (const line of lines) expect(line, JSON.stringify(line)).toMatchObject({ ok: true });
  expect(status).toBe(0);
  const step = (name: string) => lines.find((l) => l.step === name)!;

  expect(step('identities')).toMatchObject({ svids: 6, ms_p50: expect.any(Number), stranger: 'PERMISSION_DENIED' });
  const first = step('first_request');
  expect(first).toMatchObject({ status: 200, ipv6_status: 200, lost: 0, retransmitted: 0, held: 1, ipv6_held: 1 });
  expect(first.connect_ms).toBeLessThan(100);
  expect(first.ipv6_connect_ms).toBeLessThan(100);
  expect(first.handshake_ms).toBeLessThan(first.connect_ms as number);
  expect(step('auth_map')).toMatchObject({ entries_a: 2, entries_b: 2, agree: true });
  expect(step('encrypted')).toMatchObject({ plaintext_packets: 0, psk: 'TLS exporter' });
  expect(step('encrypted').tunnel_packets).toBeGreaterThan(0);
  expect(step('encrypted_control')).toMatchObject({ tunnel_packets: 0 });
  expect(step('encrypted_control').plaintext_packets).toBeGreaterThan(0);
  expect(step('denied')).toMatchObject({ arrived: 0, reason: 'POLICY_DENIED' });
  expect(step('denied').dropped).toBeGreaterThan(0);
  expect(step('denied').logged).toBeGreaterThan(0);
  expect(step('unproven')).toMatchObject({
    nosvid: 'AUTH_NO_SVID',
    wrongsvid: 'AUTH_WRONG_SPIFFE_ID',
    stolen: 'AUTH_WRONG_NODE',
    nosvid_arrived: 0,
    wrongsvid_arrived: 0,
    stolen_arrived: 0,
  });
  const revoked = step('revoked');
  expect(revoked).toMatchObject({ arrived_after: 0, unrelated_lost: 0, revoke_to_drop_ms: expect.any(Number) });
  expect(revoked.sent_after).toBeGreaterThan(500);
  expect(revoked.unrelated_sent).toBeGreaterThan(100);
  expect(step('audit')).toMatchObject({ accepted: true, refused: 'byte_changed,line_removed,lines_swapped' });

  expect(leftovers()).toEqual(NOTHING);
});

/** A demonstration, killed when it has come so far; what it leaves is not nothing. */
async function killedAt(word: string, ...args: string[]): Promise<void> {
  const run = demo('--json', ...args);
  await until(`the demonstration to say "${word}"`, 30_000, () => (run.stderr().includes(word) ? true : undefined));
  run.child.kill('SIGKILL');
  expect(await run.ended).toBe('SIGKILL');
  expect(leftovers().namespaces).not.toEqual([]);
}

test('killed while the stage comes up, its leftovers go with --down', async () => {
  await killedAt('agent of node-b');
  const cleared = down();
  expect(cleared.status).toBe(0);
  expect(cleared.stdout).toMatch(/^taken away: \d+ namespaces, \d+ processes/);
  expect(leftovers()).toEqual(NOTHING);
  expect(down().stdout).toBe('nothing to take away\n');
});

test('killed in the middle of a step, the next run begins anew and leaves nothing', async () => {
  await killedAt('encrypted_control…', 'encrypted_control');
  const next = demo('--json', 'identities');
  expect(await next.ended, next.stderr()).toBe(0);
  expect(jsonLines(next.stdout())).toMatchObject([
    { step: 'identities', ok: true },
    { summary: true, ok: true },
  ]);
  expect(leftovers()).toEqual(NOTHING);
});

test.each(['network namespaces', 'agent of node-a', 'unproven…'])('Ctrl-C at "%s" leaves nothing', async (word) => {
  const run = demo('--json', 'unproven');
  await until(`the demonstration to say "${word}"`, 30_000, () => (run.stderr().includes(word) ? true : undefined));
  process.kill(-run.child.pid!, 'SIGINT');
  expect(await run.ended).toBe(130);
  expect(leftovers()).toEqual(NOTHING);
});

test('a step that there is not is refused before anything begins', async () => {
  const run = demo('--json', 'no_such_step');
  expect(await run.ended).toBe(2);
  expect(run.stderr()).toContain('no step no_such_step: there are identities, first_request');
  expect(run.stdout()).toBe('');
  expect(existsSync(LOCK)).toBe(false);
  expect(leftovers()).toEqual(NOTHING);
});
