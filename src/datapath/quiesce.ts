/**
 * Waits until no program runs any more that began before (AckAfterPrograms, MoveWaitPrograms): what was deleted from a map is then
 * in nobody's hands. One wait at a time serves all who asked before it began.
 */
export function createQuiesce(wait: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> | undefined;
  let next: Promise<void> | undefined;

  const begin = (): Promise<void> => {
    next = undefined;
    running = wait().finally(() => {
      running = undefined;
    });
    return running;
  };
  return () => {
    // The one that runs may have begun before a change of this caller's; the next begins after it.
    next ??= running === undefined ? Promise.resolve().then(begin) : running.then(begin, begin);
    return next;
  };
}
