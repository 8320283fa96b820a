// The vm tier: boots Debian 12's own kernel and runs the kernel-facing tests there; prints their TAP lines.
import { spawn } from 'node:child_process';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../..');
const child = spawn(
  'bash',
  [join(import.meta.dirname, 'boot.sh'), 'linux-image-amd64', join(import.meta.dirname, 'guest.sh')],
  {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, VM_CACHE: join(root, '.cache/vm'), VM_TIMEOUT: '900' },
  },
);
child.once('exit', (code) => {
  process.exitCode = code ?? 1;
});
