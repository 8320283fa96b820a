/**
 * One session with one PKCS#11 token. What goes wrong in it is said as a CountersignError; a token that was away is opened again when it is asked for,
 * but a PIN that was refused once is never sent a second time: tokens lock after a few.
 */
import { createRequire } from 'node:module';
import { asError, CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile } from '../../src/base/private-file.ts';

export type Constants = typeof import('pkcs11js');
type Library = import('pkcs11js').PKCS11;
type Template = import('pkcs11js').Template;

/** Of an object, in one session. */
export interface KeyHandle {
  readonly object: Buffer;
  readonly session: Session;
}

export interface TokenOptions {
  /** Path of the shared object that the token's maker gives. */
  readonly module: string;
  /** The token's label. */
  readonly token: string;
  /** The user PIN, on the first line. Read at each log-in and not kept. */
  readonly pinFile: string;
}

export interface KeyPairTemplates {
  readonly mechanism: number;
  readonly publicKey: Template;
  readonly privateKey: Template;
}

interface Session {
  readonly library: Library;
  readonly handle: Buffer;
}

const REOPEN_INTERVAL_MS = 1000;
const MAX_SIGNATURE_BYTES = 1024;
const MAX_OBJECTS = 4096;

export class Token {
  readonly constants: Constants;
  /** For messages. */
  readonly name: string;
  readonly #options: TokenOptions;
  #session: Session | undefined;
  #closed = false;
  /** Why the last try to open it again failed. */
  #lost: CountersignError | undefined;
  #openedMs: number;
  /** Why no log-in is tried any more. */
  #refused: CountersignError | undefined;

  private constructor(constants: Constants, options: TokenOptions) {
    this.constants = constants;
    this.name = `PKCS#11 token "${options.token}"`;
    this.#options = options;
    this.#session = this.#open();
    this.#openedMs = Date.now();
  }

  /** @throws CountersignError */
  static open(options: TokenOptions): Token {
    return new Token(loadBinding(), options);
  }

  /**
   * True: a new session is open, and the handles of the one before are good for nothing: the same number may now be another key's. At most once a second.
   * @throws CountersignError if it is not to be had.
   */
  reopen(): boolean {
    if (this.#refused !== undefined) throw this.#refused;
    const nowMs = Date.now();
    if (this.#closed || Math.abs(nowMs - this.#openedMs) < REOPEN_INTERVAL_MS) return false;
    this.#openedMs = nowMs;
    this.#end();
    try {
      this.#session = this.#open();
    } catch (thrown) {
      if (thrown instanceof CountersignError) this.#lost = thrown;
      throw thrown;
    }
    return true;
  }

  /** Whether the handle is of the session that is open. */
  holds(key: KeyHandle): boolean {
    return key.session === this.#session;
  }

  close(): void {
    this.#closed = true;
    this.#end();
  }

  #end(): void {
    const session = this.#session;
    this.#session = undefined;
    if (session === undefined) return;
    try {
      // ends its sessions and forgets the log-in
      session.library.C_Finalize();
    } catch {
      // a token that is gone cannot be told
    }
  }

  sign(key: KeyHandle, mechanism: number, data: Buffer): Buffer {
    return this.#do('sign', ({ library, handle }) => {
      if (!this.holds(key)) throw new Error('a handle of another session');
      library.C_SignInit(handle, { mechanism }, key.object);
      return Buffer.from(library.C_Sign(handle, data, Buffer.alloc(MAX_SIGNATURE_BYTES)));
    });
  }

  /** Outside of the event loop: a token takes its time. */
  async generateKeyPair({ mechanism, publicKey, privateKey }: KeyPairTemplates): Promise<void> {
    const { library, handle } = this.#opened();
    try {
      await library.C_GenerateKeyPairAsync(handle, { mechanism }, publicKey, privateKey);
    } catch (thrown) {
      throw this.#problem('make a key', thrown);
    }
  }

  /** @throws CountersignError bad-input if there are several. */
  find(kind: 'private' | 'public', label: string): KeyHandle | undefined {
    const [found, ...more] = this.#search(kind, label);
    if (more.length === 0) return found;
    throw new CountersignError(
      'bad-input',
      `${this.name}: ${more.length + 1} ${kind} keys are labelled "${label}"; remove the wrong ones`,
    );
  }

  destroy(kind: 'private' | 'public', label: string): void {
    for (const object of this.#search(kind, label)) {
      this.#do('remove a key', ({ library, handle }) => library.C_DestroyObject(handle, object.object));
    }
  }

  /** Of all private keys. */
  labels(): string[] {
    return this.#search('private', undefined).map((key) =>
      this.attributes(key, [this.constants.CKA_LABEL])[0]!.toString('utf8'),
    );
  }

  attributes({ object }: KeyHandle, types: readonly number[]): Buffer[] {
    return this.#do('read a key’s attributes', ({ library, handle }) =>
      library
        .C_GetAttributeValue(
          handle,
          object,
          types.map((type) => ({ type })),
        )
        .map(({ value }) => value as Buffer),
    );
  }

  #search(kind: 'private' | 'public', label: string | undefined): KeyHandle[] {
    const c = this.constants;
    const template: Template = [
      { type: c.CKA_CLASS, value: kind === 'private' ? c.CKO_PRIVATE_KEY : c.CKO_PUBLIC_KEY },
    ];
    if (label !== undefined) template.push({ type: c.CKA_LABEL, value: label });
    return this.#do('look for a key', (session) => {
      const { library, handle } = session;
      library.C_FindObjectsInit(handle, template);
      try {
        return library.C_FindObjects(handle, MAX_OBJECTS).map((object) => ({ object, session }));
      } finally {
        library.C_FindObjectsFinal(handle);
      }
    });
  }

  #open(): Session {
    const { constants } = this;
    const library = loadModule(constants, this.#options.module);
    try {
      const slot = this.#slot(library);
      const handle = this.#try('open a session', () =>
        library.C_OpenSession(slot, constants.CKF_SERIAL_SESSION | constants.CKF_RW_SESSION),
      );
      this.#logIn(library, handle);
      return { library, handle };
    } catch (thrown) {
      library.C_Finalize();
      throw thrown;
    }
  }

  #slot(library: Library): Buffer {
    const { constants } = this;
    const seen: string[] = [];
    const found: Buffer[] = [];
    for (const slot of this.#try('list its slots', () => library.C_GetSlotList(true))) {
      const { label, flags } = this.#try('read its label', () => library.C_GetTokenInfo(slot));
      if ((flags & constants.CKF_TOKEN_INITIALIZED) === 0) continue;
      seen.push(label.trimEnd());
      if (label.trimEnd() === this.#options.token) found.push(slot);
    }
    if (found.length === 1) return found[0]!;
    const there = seen.length === 0 ? 'there is none' : `there are ${seen.map((label) => `"${label}"`).join(', ')}`;
    if (found.length === 0) {
      throw new CountersignError(
        'unavailable',
        `ca.keys.token: no token is labelled "${this.#options.token}"; ${there}: plug it in or correct the label`,
      );
    }
    throw new CountersignError(
      'bad-input',
      `ca.keys.token: ${found.length} tokens are labelled "${this.#options.token}"; give each a label of its own`,
    );
  }

  #logIn(library: Library, session: Buffer): void {
    const { constants } = this;
    const { pinFile } = this.#options;
    const [pin = ''] = readPrivateFile(pinFile, 4096).toString('utf8').split(/\r?\n/);
    if (pin === '')
      throw new CountersignError(
        'bad-input',
        `ca.keys.pinFile: the first line of ${pinFile} is empty; write the PIN there`,
      );
    try {
      library.C_Login(session, constants.CKU_USER, pin);
    } catch (thrown) {
      const code = (thrown as { code?: unknown }).code;
      if (code === constants.CKR_USER_ALREADY_LOGGED_IN) return;
      if (
        code === constants.CKR_PIN_INCORRECT ||
        code === constants.CKR_PIN_LEN_RANGE ||
        code === constants.CKR_PIN_INVALID
      ) {
        this.#refused = new CountersignError(
          'unauthenticated',
          `ca.keys.pinFile: ${this.name} refuses the PIN in ${pinFile}; correct it and start again (it is not tried twice, as tokens lock after a few wrong ones)`,
        );
        throw this.#refused;
      }
      if (code === constants.CKR_PIN_LOCKED) {
        this.#refused = new CountersignError(
          'unauthenticated',
          `${this.name}: its PIN is locked; unlock it with the security officer's`,
        );
        throw this.#refused;
      }
      throw this.#problem('log in', thrown);
    }
  }

  #opened(): Session {
    if (this.#refused !== undefined) throw this.#refused;
    if (this.#session !== undefined) return this.#session;
    throw this.#closed || this.#lost === undefined
      ? new CountersignError('unavailable', `${this.name}: it is closed`)
      : this.#lost;
  }

  #do<T>(what: string, run: (session: Session) => T): T {
    const session = this.#opened();
    return this.#try(what, () => run(session));
  }

  #try<T>(what: string, run: () => T): T {
    try {
      return run();
    } catch (thrown) {
      throw this.#problem(what, thrown);
    }
  }

  /** A PKCS#11 error says a name such as CKR_DEVICE_REMOVED and nothing secret. */
  #problem(what: string, thrown: unknown): CountersignError {
    return new CountersignError(
      'unavailable',
      `${this.name}: could not ${what} (${asError(thrown).message}); see that it is there and works`,
      { cause: thrown },
    );
  }
}

/** Only who keeps keys in a token needs the package, and its native part. */
function loadBinding(): Constants {
  try {
    return createRequire(import.meta.url)('pkcs11js') as Constants;
  } catch (cause) {
    throw new CountersignError(
      'unsupported',
      'ca.keys.type: pkcs11 needs the npm package pkcs11js with its native part built; run npm install pkcs11js, or choose another type',
      { cause },
    );
  }
}

function loadModule(constants: Constants, path: string): Library {
  const library = new constants.PKCS11();
  try {
    library.load(path);
    library.C_Initialize({ flags: constants.CKF_OS_LOCKING_OK });
    return library;
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `ca.keys.module: ${path} cannot be used as a PKCS#11 module (${asError(cause).message}); correct the path`,
      { cause },
    );
  }
}
