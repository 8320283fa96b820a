// Runs the test tiers that can run on this machine and says of each whether it ran or why not. Last line: the sum.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

interface Tier {
  readonly name: string;
  readonly what: string;
  /** Why it cannot run here; undefined: it can. */
  readonly obstacle: () => string | undefined;
  readonly run: () => Promise<Counts>;
  /** Runs only when it is named, for this reason. */
  readonly onRequest?: string;
}

const root = join(import.meta.dirname, '..');
const bin = (name: string) => join(root, 'node_modules/.bin', name);

const isRoot = process.getuid?.() === 0;
const privileged = (): string | undefined => {
  if (!isRoot) return 'needs root: run sudo ./dev test';
  if (!existsSync('/sys/kernel/btf/vmlinux')) return 'the kernel has no BTF (/sys/kernel/btf/vmlinux)';
  if (!existsSync('/dev/net/tun')) return 'no /dev/net/tun: modprobe tun';
  return undefined;
};

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 2, 2], env: { ...process.env, ...env } });
    child.once('error', reject);
    child.once('exit', (code) => resolve(code ?? 1));
  });
}

/** A vitest project; what it counted comes from its JSON report, so that a crash is a failure and not silence. */
function vitest(project: string): () => Promise<Counts> {
  return async () => {
    const dir = mkdtempSync(join(tmpdir(), 'countersign-test-'));
    const report = join(dir, 'report.json');
    try {
      const code = await run(bin('vitest'), [
        'run',
        '--project',
        project,
        '--reporter=default',
        '--reporter=json',
        `--outputFile.json=${report}`,
      ]);
      if (!existsSync(report)) return { passed: 0, failed: 1, skipped: 0 };
      const json = JSON.parse(readFileSync(report, 'utf8')) as {
        numPassedTests: number;
        numFailedTests: number;
        numPendingTests: number;
        numTodoTests: number;
        numFailedTestSuites: number;
      };
      let failed = json.numFailedTests;
      if (failed === 0 && (code !== 0 || json.numPassedTests === 0)) failed = Math.max(1, json.numFailedTestSuites);
      return { passed: json.numPassedTests, failed, skipped: json.numPendingTests + json.numTodoTests };
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  };
}

async function checks(): Promise<Counts> {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const script of ['check:types', 'check:lint', 'check:dead', 'check:proto']) {
    const code = await run('npm', ['run', '-s', script]);
    process.stderr.write(`  ${code === 0 ? 'ok    ' : 'FAILED'} npm run ${script}\n`);
    counts[code === 0 ? 'passed' : 'failed']++;
  }
  return counts;
}

/** A program of ours that prints one TAP-like line for each test; what it printed is counted here. */
const printed = (program: string) => async (): Promise<Counts> => {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const script = join(root, program);
  await new Promise<void>((resolve, reject) => {
    const child = spawn(process.execPath, [script], { cwd: root, stdio: ['ignore', 'pipe', 2] });
    let rest = '';
    child.stdout!.on('data', (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        process.stderr.write(`  ${line}\n`);
        if (/^ok .*# SKIP/.test(line)) counts.skipped++;
        else if (line.startsWith('ok ')) counts.passed++;
        else if (line.startsWith('not ok ')) counts.failed++;
      }
    });
    child.once('error', reject);
    child.once('exit', (code) => {
      if (code !== 0 && counts.failed === 0) counts.failed++;
      if (counts.passed + counts.failed === 0) counts.failed++;
      resolve();
    });
  });
  return counts;
};

const vmObstacle = (): string | undefined => {
  if (!isRoot) return 'needs root (the guest reads the whole file system)';
  const missing = ['/usr/bin/qemu-system-x86_64', '/bin/busybox', '/usr/bin/cpio'].filter((f) => !existsSync(f));
  return missing.length > 0 ? `not installed: ${missing.join(', ')}` : undefined;
};

const interopObstacle = (): string | undefined => {
  const why = privileged();
  if (why !== undefined) return why;
  const go = spawnSync('go', ['env', 'GOVERSION'], { env: { ...process.env, GOTOOLCHAIN: 'local' }, encoding: 'utf8' });
  const [, minor = '0'] = /^go1\.(\d+)/.exec(go.stdout ?? '') ?? [];
  if (Number(minor) < 26) return 'no Go 1.26 or later: install it from go.dev to run clients that others wrote';
  // the distribution's own, as test/interop takes it: other users must be able to run it
  const program = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3';
  const fits = 'import sys, venv, ensurepip; exit(not (3, 11) <= sys.version_info < (3, 14))';
  const python = spawnSync(program, ['-c', fits]);
  return python.status === 0 ? undefined : 'no Python 3.11 to 3.13 with venv: install python3 and python3-venv';
};

const modelObstacle = (): string | undefined => {
  const missing = ['/usr/bin/spin', '/usr/bin/gcc'].filter((f) => !existsSync(f));
  return missing.length > 0 ? `not installed: ${missing.join(', ')}` : undefined;
};

const tiers: readonly Tier[] = [
  { name: 'check', what: 'types, lint, dead code, proto compatibility', obstacle: () => undefined, run: checks },
  { name: 'unit', what: 'no privileges needed', obstacle: () => undefined, run: vitest('unit') },
  { name: 'story', what: 'the documents against the code', obstacle: () => undefined, run: vitest('story') },
  {
    name: 'sim',
    what: 'random schedules of the real state machines in simulated time',
    obstacle: () => undefined,
    run: printed('test/sim/main.ts'),
  },
  {
    name: 'model',
    what: 'leases and fences, every state of the models, and each rule taken away',
    obstacle: modelObstacle,
    run: printed('test/model/run.ts'),
  },
  { name: 'bpf', what: 'the kernel programs under BPF_PROG_TEST_RUN', obstacle: privileged, run: vitest('bpf') },
  { name: 'netns', what: 'real packets in network namespaces', obstacle: privileged, run: vitest('netns') },
  {
    name: 'interop',
    what: 'clients that others wrote (go-spiffe, py-spiffe, Envoy SDS, openssl) against a running server and agent',
    obstacle: interopObstacle,
    run: vitest('interop'),
  },
  {
    name: 'vm',
    what: "Debian's own kernels in QEMU: 6.1 (clsact, the kernel's WireGuard), 6.12 (tcx, SCTP)",
    obstacle: vmObstacle,
    run: printed('test/vm/run.ts'),
    onRequest: 'takes many minutes in an emulated machine: ./dev test vm',
  },
];

async function main(): Promise<number> {
  const args = process.argv.slice(2);
  if (args.includes('--list')) {
    for (const tier of tiers)
      console.log(
        `${tier.name.padEnd(9)}${tier.what}${((why) => (why ? ` [not here: ${why}]` : ''))(tier.obstacle())}`,
      );
    return 0;
  }
  const unknown = args.filter((name) => !tiers.some((tier) => tier.name === name));
  if (unknown.length > 0) {
    console.error(`no tier '${unknown.join("', '")}': there are ${tiers.map((t) => t.name).join(', ')}`);
    return 2;
  }
  const required = new Set((process.env.COUNTERSIGN_REQUIRED_TIERS ?? '').split(' ').filter((name) => name !== ''));
  const sum = { passed: 0, failed: 0, skipped: 0 };
  const summary: string[] = [];
  mkdirSync(join(root, 'build'), { recursive: true });
  for (const tier of tiers) {
    if (args.length > 0 && !args.includes(tier.name)) continue;
    const why = tier.obstacle() ?? (args.length === 0 ? tier.onRequest : undefined);
    if (why !== undefined) {
      const must = required.has(tier.name);
      summary.push(
        `${tier.name.padEnd(9)}${must ? 'FAILED ' : 'skipped'}  ${why}${must ? ' (but this tier must run here)' : ''}`,
      );
      sum[must ? 'failed' : 'skipped']++;
      continue;
    }
    console.error(`\n== ${tier.name}: ${tier.what}`);
    const started = performance.now();
    const counts = await tier.run();
    // On a machine that must run a tier, a test that skips itself hides a fault.
    if (required.has(tier.name) && counts.skipped > 0) {
      counts.failed += counts.skipped;
      counts.skipped = 0;
    }
    sum.passed += counts.passed;
    sum.failed += counts.failed;
    sum.skipped += counts.skipped;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    summary.push(
      `${tier.name.padEnd(9)}${counts.failed === 0 ? 'ran    ' : 'FAILED '}  ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped (${seconds} s)`,
    );
  }
  console.log(`\n${summary.join('\n')}\n`);
  console.log(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`);
  return sum.failed === 0 && sum.passed > 0 ? 0 : 1;
}

process.exit(await main());
