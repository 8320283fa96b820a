import { spawnSync } from 'node:child_process';

const candidates = ['clang-19', 'clang-18', 'clang-17', 'clang-16', 'clang-15', 'clang-14', 'clang'];

/** The BPF compiler that is here, in the order in which ./dev prefers them. @throws Error when there is none */
export function clang(): string {
  const found = candidates.find((name) => spawnSync(name, ['--version']).status === 0);
  if (found === undefined) throw new Error('no clang: run ./dev build, which installs it');
  return found;
}
