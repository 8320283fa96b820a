/** One writer for each log: a lock file naming the process, which a killed one leaves behind and the next one takes over. */
import { closeSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { CountersignError } from '../base/errors.ts';
import { LOCK_FILE } from './layout.ts';

/** Returns the function that lets go. @throws CountersignError already-exists while another process writes this log. */
export function lockLog(dir: string): () => void {
  const path = join(dir, LOCK_FILE);
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      const fd = openSync(path, 'wx', 0o600);
      writeSync(fd, `${process.pid} ${startTime(process.pid) ?? ''}\n`);
      closeSync(fd);
      return () => rmSync(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = holderOf(path);
    if (holder !== undefined) {
      throw new CountersignError('already-exists', `${dir}: process ${holder} writes this audit log; stop it first`);
    }
    rmSync(path, { force: true });
  }
  throw new CountersignError('already-exists', `${path}: another process keeps taking this lock; stop it first`);
}

/** The living process that holds the lock. A pid used again has another start time. */
function holderOf(path: string): number | undefined {
  try {
    const [pid, started] = readFileSync(path, 'utf8').trim().split(' ');
    return started !== undefined && startTime(Number(pid)) === started ? Number(pid) : undefined;
  } catch {
    return undefined;
  }
}

/** Field 22 of /proc/<pid>/stat (proc_pid_stat(5)); the second field may hold spaces and parentheses. */
function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}
