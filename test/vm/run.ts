// The vm tier: boots Debian's kernels and runs the kernel-facing tests in each; prints their TAP lines.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

/** Meta packages of Debian 12: its own kernel (6.1), and the newer one it also ships. */
const guests = [
  ['linux-image-amd64', 'guest.sh'],
  ['linux-image-6.12-amd64', 'guest-tcx.sh'],
] as const;

const root = join(import.meta.dirname, '../..');
for (const [kernel, script] of guests) {
  console.log(`# ${kernel}`);
  const argv = [join(import.meta.dirname, 'boot.sh'), kernel, join(import.meta.dirname, script)];
  const child = spawn('bash', argv, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, VM_CACHE: join(root, '.cache/vm'), VM_TIMEOUT: '1500' },
  });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0) {
    console.log(`not ok - ${kernel}: the guest ended with ${code ?? 'a signal'}`);
    process.exitCode = 1;
  }
}
