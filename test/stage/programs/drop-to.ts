/** Gives up root for a workload's uid. Done by the program itself, so that its source need not be readable by that uid. */
export function dropTo(uid: number): void {
  process.setgroups?.([]);
  process.setgid?.(uid);
  process.setuid?.(uid);
}
