/** entries.yaml: read at the start, and again whenever it changes. A file that is not right changes nothing. */
import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { loadConfigFile } from '../src/base/config-file.ts';
import { asError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import { systemTimers } from '../src/base/timers.ts';
import { entriesFileSchema } from './entry-spec.ts';
import type { Registry } from './registry.ts';

/** Editors write a file in several steps. */
const SETTLE_MS = 100;

/** @throws CountersignError bad-input with file, line and field. */
export function loadEntriesFile(registry: Registry, path: string): void {
  registry.replaceFileEntries(loadConfigFile(path, entriesFileSchema).entries, path);
}

/** Watches the directory, because editors replace files. Returns what ends it. */
export function watchEntriesFile(registry: Registry, path: string, log: Logger): () => void {
  let cancel = () => {};
  const reload = () => {
    try {
      loadEntriesFile(registry, path);
      log.info({ path, entries: registry.size }, 'entries read');
    } catch (thrown) {
      log.error({ path, problem: asError(thrown).message }, 'entries refused; those in force stay');
    }
  };
  const watcher: FSWatcher = watch(dirname(path), (_, name) => {
    if (name !== null && name !== basename(path)) return;
    cancel();
    cancel = systemTimers.set(SETTLE_MS, reload);
  });
  watcher.on('error', (error) => log.error({ path, err: error }, 'the entries file is no longer watched'));
  return () => {
    cancel();
    watcher.close();
  };
}
