/** Where keys are kept as bytes: a directory, or whatever a replicated store makes of this interface. What they say, stored-keys.ts knows. */
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile, syncDirectory, writePrivateFile } from '../../src/base/private-file.ts';

/** By key id. What is written is durable when the promise resolves. */
export interface KeyBlobs {
  /** Whether copies of it leave this machine: then keys are kept in it sealed or not at all. */
  readonly replicated: boolean;
  /** Where a blob is, for messages. */
  describe(id: string): string;
  get(id: string): Promise<Buffer | undefined>;
  /** False: there is one already, which stays. */
  create(id: string, blob: Buffer): Promise<boolean>;
  replace(id: string, blob: Buffer): Promise<void>;
  delete(id: string): Promise<void>;
  list(): Promise<string[]>;
}

const SUFFIX = '.key';

/** `<id>.key`, 0600, in a directory that is the server's alone and whose keys one process uses at a time. */
export class KeyDirectory implements KeyBlobs {
  readonly replicated = false;
  readonly #directory: string;

  /** Makes it, 0700, if it is not there. @throws CountersignError if it is open to others. */
  constructor(directory: string) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const { mode, uid } = statSync(directory);
    if ((mode & 0o077) !== 0) {
      throw new CountersignError(
        'permission-denied',
        `${directory}: group or others may enter; run chmod 700 ${directory}`,
      );
    }
    const self = process.geteuid?.();
    if (self !== undefined && uid !== self && uid !== 0) {
      throw new CountersignError(
        'permission-denied',
        `${directory}: it belongs to another user; run chown ${self} ${directory}`,
      );
    }
    this.#directory = directory;
  }

  describe(id: string): string {
    return join(this.#directory, `${id}${SUFFIX}`);
  }

  async get(id: string): Promise<Buffer | undefined> {
    try {
      return readPrivateFile(this.describe(id));
    } catch (thrown) {
      if (thrown instanceof CountersignError && thrown.code === 'not-found') return undefined;
      throw thrown;
    }
  }

  async create(id: string, blob: Buffer): Promise<boolean> {
    if (existsSync(this.describe(id))) return false;
    writePrivateFile(this.describe(id), blob);
    return true;
  }

  async replace(id: string, blob: Buffer): Promise<void> {
    writePrivateFile(this.describe(id), blob);
  }

  async delete(id: string): Promise<void> {
    rmSync(this.describe(id), { force: true });
    // half of one, as a crash left it, is as secret as the whole
    rmSync(`${this.describe(id)}.new`, { force: true });
    syncDirectory(this.#directory);
  }

  /** What a crash left half written is cleared away: nobody was told of it. */
  async list(): Promise<string[]> {
    const ids: string[] = [];
    for (const name of readdirSync(this.#directory)) {
      if (name.endsWith(`${SUFFIX}.new`)) rmSync(join(this.#directory, name), { force: true });
      else if (name.endsWith(SUFFIX)) ids.push(name.slice(0, -SUFFIX.length));
    }
    return ids.sort();
  }
}
