/**
 * Keys encrypted at rest: AES-256-GCM under a key made of a passphrase (scrypt; PBKDF2 where OpenSSL runs in FIPS mode, which has no scrypt) or of a key
 * file (HKDF). The key's id is authenticated with it, so that one key's file cannot stand in for another's.
 */
import {
  createCipheriv,
  createDecipheriv,
  getFips,
  hkdf,
  pbkdf2,
  randomBytes,
  type ScryptOptions,
  scrypt,
} from 'node:crypto';
import { promisify } from 'node:util';
import { z } from 'zod';
import { CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile } from '../../src/base/private-file.ts';

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const SALT_BYTES = 16;
const MIN_PASSPHRASE_CHARACTERS = 16;
const MIN_KEY_FILE_BYTES = 32;
const MAX_SECRET_BYTES = 4096;
const HEADER = 'COUNTERSIGN SEALED KEY 1\n';

/** 128 MiB and about 0.3 s for each guess (OWASP's first choice). */
const SCRYPT: ScryptOptions = { N: 2 ** 17, r: 8, p: 1, maxmem: 256 * 1024 * 1024 };
const PBKDF2_ITERATIONS = 600_000;

const base64 = (bytes?: number) =>
  z
    .string()
    .max(32_768)
    .transform((text, context) => {
      const out = Buffer.from(text, 'base64');
      if (out.toString('base64') === text && (bytes === undefined || out.length === bytes)) return out;
      context.addIssue('not base64 of the right length');
      return z.NEVER;
    });

const sealedSchema = z.strictObject({
  kdf: z.enum(['scrypt', 'pbkdf2-sha256', 'hkdf-sha256']),
  salt: base64(SALT_BYTES),
  nonce: base64(NONCE_BYTES),
  ciphertext: base64(),
});
type Kdf = z.infer<typeof sealedSchema>['kdf'];

const derive: Readonly<Record<Kdf, (secret: Buffer, salt: Buffer) => Promise<Buffer>>> = {
  scrypt: (secret, salt) =>
    promisify<Buffer, Buffer, number, ScryptOptions, Buffer>(scrypt)(secret, salt, KEY_BYTES, SCRYPT),
  'pbkdf2-sha256': (secret, salt) => promisify(pbkdf2)(secret, salt, PBKDF2_ITERATIONS, KEY_BYTES, 'sha256'),
  'hkdf-sha256': async (secret, salt) =>
    Buffer.from(await promisify(hkdf)('sha256', secret, salt, 'countersign sealed key', KEY_BYTES)),
};

export function isSealed(blob: Buffer): boolean {
  return blob.toString('latin1', 0, HEADER.length) === HEADER;
}

/** What keys are sealed with and opened by. */
export class Sealer {
  readonly #source: 'passphrase' | 'key file';
  readonly #secret: Buffer;
  /** One salt serves what one process seals: deriving a key is slow on purpose. */
  readonly #salt = randomBytes(SALT_BYTES);
  readonly #derived = new Map<string, Promise<Buffer>>();
  #closed = false;

  private constructor(source: 'passphrase' | 'key file', secret: Buffer) {
    this.#source = source;
    this.#secret = secret;
  }

  /** The file's first line. @throws CountersignError naming file and fix, if others may read it or it is too short. */
  static fromPassphraseFile(path: string): Sealer {
    const [line = ''] = readPrivateFile(path, MAX_SECRET_BYTES).toString('utf8').split(/\r?\n/);
    if (line.length < MIN_PASSPHRASE_CHARACTERS) {
      throw new CountersignError(
        'bad-input',
        `ca.keys.passphraseFile: the first line of ${path} is shorter than ${MIN_PASSPHRASE_CHARACTERS} characters; write a longer passphrase there`,
      );
    }
    return new Sealer('passphrase', Buffer.from(line, 'utf8'));
  }

  /** The file's bytes, all of them random. Throws as fromPassphraseFile does. */
  static fromKeyFile(path: string): Sealer {
    const secret = readPrivateFile(path, MAX_SECRET_BYTES);
    if (secret.length < MIN_KEY_FILE_BYTES) {
      throw new CountersignError(
        'bad-input',
        `ca.keys.keyFile: ${path} has ${secret.length} bytes; make one of ${MIN_KEY_FILE_BYTES} with: head -c ${MIN_KEY_FILE_BYTES} /dev/urandom > ${path}`,
      );
    }
    return new Sealer('key file', secret);
  }

  async seal(id: string, bytes: Buffer): Promise<Buffer> {
    const kdf: Kdf = this.#source === 'key file' ? 'hkdf-sha256' : getFips() === 1 ? 'pbkdf2-sha256' : 'scrypt';
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', await this.#key(kdf, this.#salt), nonce);
    cipher.setAAD(authenticated(id));
    const ciphertext = Buffer.concat([cipher.update(bytes), cipher.final(), cipher.getAuthTag()]);
    const text = (part: Buffer) => part.toString('base64');
    const fields = { kdf, salt: text(this.#salt), nonce: text(nonce), ciphertext: text(ciphertext) };
    return Buffer.from(`${HEADER}${JSON.stringify(fields)}\n`, 'latin1');
  }

  /** @throws CountersignError bad-input: cut, changed, of another key, or sealed with another secret. Which of them, nobody can tell. */
  async open(id: string, blob: Buffer): Promise<Buffer> {
    const { kdf, salt, nonce, ciphertext } = readSealed(blob);
    const wanted = kdf === 'hkdf-sha256' ? 'key file' : 'passphrase';
    if (wanted !== this.#source) {
      const field = wanted === 'passphrase' ? 'ca.keys.passphraseFile' : 'ca.keys.keyFile';
      throw new CountersignError('bad-input', `it is encrypted with a ${wanted}, not a ${this.#source}; set ${field}`);
    }
    const decipher = createDecipheriv('aes-256-gcm', await this.#key(kdf, salt), nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(authenticated(id));
    decipher.setAuthTag(ciphertext.subarray(-TAG_BYTES));
    try {
      return Buffer.concat([decipher.update(ciphertext.subarray(0, -TAG_BYTES)), decipher.final()]);
    } catch {
      throw new CountersignError(
        'bad-input',
        `it cannot be decrypted: it was changed, or the ${this.#source} is another; give the right one, or restore the key from a backup`,
      );
    }
  }

  close(): void {
    this.#closed = true;
    this.#secret.fill(0);
    this.#derived.clear();
  }

  async #key(kdf: Kdf, salt: Buffer): Promise<Buffer> {
    if (this.#closed) throw new CountersignError('unavailable', 'the certificate authority is closed');
    const name = `${kdf} ${salt.toString('hex')}`;
    const known = this.#derived.get(name) ?? derived(kdf, this.#secret, salt);
    this.#derived.set(name, known);
    return known;
  }
}

async function derived(kdf: Kdf, secret: Buffer, salt: Buffer): Promise<Buffer> {
  try {
    return await derive[kdf](secret, salt);
  } catch (cause) {
    throw new CountersignError(
      'unsupported',
      `OpenSSL refuses ${kdf} here, as in FIPS mode; start once without FIPS mode and change the secret to a key file (ca.keys.former)`,
      { cause },
    );
  }
}

function authenticated(id: string): Buffer {
  return Buffer.from(`${HEADER}${id}`, 'latin1');
}

function readSealed(blob: Buffer) {
  const damaged = new CountersignError('bad-input', 'it is damaged; restore it from a backup');
  let fields: unknown;
  try {
    fields = JSON.parse(blob.toString('latin1', HEADER.length));
  } catch {
    throw damaged;
  }
  const parsed = sealedSchema.safeParse(fields);
  if (!parsed.success || parsed.data.ciphertext.length <= TAG_BYTES) throw damaged;
  return parsed.data;
}
