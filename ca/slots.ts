/**
 * The signing keys and where each is in its life, on disk before anything comes of it: `making` → `prepared` → `active` → `old` →
 * `leaving`, or `revoked` from any but active. A restart reads the states and finishes what was begun; see authorities.ts.
 */
import type { DatabaseSync } from 'node:sqlite';
import { CountersignError } from '../src/base/errors.ts';
import type { KeyType } from './keys/key-type.ts';
import { transaction } from './store.ts';

/**
 * making: its key may be there, nobody knows of it. leaving: out of the bundle, its key is about to be deleted. revoked: as leaving, and its last
 * CRL is served until nothing that it signed lives.
 */
type State = 'making' | 'prepared' | 'active' | 'old' | 'leaving' | 'revoked';

/** What a new authority is made of. */
export interface Made {
  /** x509: subject key identifier, lower-case hex; jwt: the kid. */
  readonly id: string;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Buffer;
  /** DER. From an upstream: what SVIDs carry, the own certificate first; self-signed or jwt: empty. */
  readonly chain: readonly Buffer[];
  /** DER. What the bundle holds for it; jwt: empty. */
  readonly roots: readonly Buffer[];
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export interface Slot extends Made {
  /** In the key manager. */
  readonly keyId: string;
  readonly kind: 'x509' | 'jwt';
  readonly state: State;
  readonly keyType: KeyType;
  readonly tainted: boolean;
  readonly crl: Crl | undefined;
}

interface Crl {
  readonly der: Buffer;
  readonly number: number;
  /** Unix ms. */
  readonly thisUpdateMs: number;
  readonly nextUpdateMs: number;
}

/** States of the bundle: verifiers know the key. */
export function isPublished({ state }: Slot): boolean {
  return state === 'prepared' || state === 'active' || state === 'old';
}

export class Slots {
  readonly #database: DatabaseSync;
  #slots: readonly Slot[];

  constructor(database: DatabaseSync) {
    this.#database = database;
    this.#slots = this.#read();
  }

  /** In the order in which they were begun. */
  list(): readonly Slot[] {
    return this.#slots;
  }

  get(keyId: string): Slot {
    const slot = this.#slots.find((each) => each.keyId === keyId);
    if (slot === undefined) throw new CountersignError('internal', `no slot ${keyId}`);
    return slot;
  }

  active(kind: Slot['kind']): Slot | undefined {
    return this.#slots.find((slot) => slot.kind === kind && slot.state === 'active');
  }

  /** Before the key is made: what a crash leaves behind has a name. */
  begin(keyId: string, kind: Slot['kind'], keyType: KeyType): void {
    this.#change(() => this.#insert(keyId, kind, keyType));
  }

  /** It is in the bundle from now on. */
  publish(keyId: string, made: Made, nowMs: number): void {
    this.#change(() => this.#publish(keyId, made, nowMs));
  }

  /** It signs from now on, and the one that did no longer. */
  activate(keyId: string): void {
    const { kind } = this.get(keyId);
    this.#change(() => {
      this.#database.prepare("UPDATE authority SET state = 'old' WHERE kind = ? AND state = 'active'").run(kind);
      this.#setState(keyId, 'active');
    });
  }

  taint(keyId: string, nowMs: number): void {
    this.#change(() => {
      this.#database.prepare('UPDATE authority SET tainted = 1 WHERE key_id = ?').run(keyId);
      this.#nextSequence(nowMs);
    });
  }

  /** It is out of the bundle from now on. `also` happens with it or not at all. */
  withdraw(keyId: string, state: 'leaving' | 'revoked', nowMs: number, also: () => void = () => {}): void {
    this.#change(() => {
      this.#setState(keyId, state);
      also();
      this.#nextSequence(nowMs);
    });
  }

  /** After its key is deleted. */
  forget(keyId: string): void {
    this.#change(() => {
      this.#database.prepare('DELETE FROM authority WHERE key_id = ?').run(keyId);
    });
  }

  setCrl(keyId: string, { der, number, thisUpdateMs, nextUpdateMs }: Crl): void {
    this.#change(() => {
      this.#database
        .prepare(
          'UPDATE authority SET crl = ?, crl_number = ?, crl_this_update_ms = ?, crl_next_update_ms = ? WHERE key_id = ?',
        )
        .run(der, number, thisUpdateMs, nextUpdateMs, keyId);
    });
  }

  /** The bundle's. */
  get sequence(): bigint {
    const row = this.#database.prepare("SELECT value FROM counter WHERE name = 'bundle'").get();
    return BigInt((row?.value ?? 1) as number);
  }

  /** Its key is gone: it signs no more, and what it signed lives to its end. */
  lose(keyId: string): void {
    this.#change(() => this.#setState(keyId, 'old'));
  }

  /** The authority of a ledger that knew only one, with all that it signed. */
  takeOver(keyId: string, keyType: KeyType, made: Made, nowMs: number): void {
    this.#change(() => {
      this.#insert(keyId, 'x509', keyType);
      this.#publish(keyId, made, nowMs);
      this.#setState(keyId, 'active');
      this.#database.prepare("UPDATE svid SET authority = ? WHERE authority = ''").run(made.id);
    });
  }

  #insert(keyId: string, kind: Slot['kind'], keyType: KeyType): void {
    this.#database
      .prepare("INSERT INTO authority VALUES (?, ?, '', 'making', ?, 0, 0, 0, x'', '[]', '[]', NULL, 0, 0, 0)")
      .run(keyId, kind, keyType);
  }

  #publish(keyId: string, made: Made, nowMs: number): void {
    const texts = (list: readonly Buffer[]) => JSON.stringify(list.map((der) => der.toString('base64')));
    this.#database
      .prepare(
        "UPDATE authority SET state = 'prepared', id = ?, not_before_ms = ?, not_after_ms = ?, public_key = ?, chain = ?, roots = ? WHERE key_id = ?",
      )
      .run(made.id, made.notBeforeMs, made.notAfterMs, made.publicKey, texts(made.chain), texts(made.roots), keyId);
    this.#nextSequence(nowMs);
  }

  /**
   * Grows with the clock where it can, so that it does not go back when the database is restored from a backup: whoever knows a later bundle would
   * refuse this one.
   */
  #nextSequence(nowMs: number): void {
    this.#database
      .prepare("INSERT INTO counter VALUES ('bundle', ?1) ON CONFLICT (name) DO UPDATE SET value = max(value + 1, ?1)")
      .run(Math.max(2, Math.floor(nowMs / 1000)));
  }

  #setState(keyId: string, state: State): void {
    this.#database.prepare('UPDATE authority SET state = ? WHERE key_id = ?').run(state, keyId);
  }

  #change(work: () => void): void {
    transaction(this.#database, work);
    this.#slots = this.#read();
  }

  #read(): Slot[] {
    return this.#database.prepare('SELECT * FROM authority ORDER BY rowid').all().map(slotOf);
  }
}

/** Only this file writes the table: its values are of the types they were written with. */
function slotOf(row: Record<string, unknown>): Slot {
  const ders = (text: unknown) => (JSON.parse(text as string) as string[]).map((der) => Buffer.from(der, 'base64'));
  const crl = row.crl as Uint8Array | null;
  return {
    keyId: row.key_id as string,
    kind: row.kind as Slot['kind'],
    id: row.id as string,
    state: row.state as State,
    keyType: row.key_type as KeyType,
    notBeforeMs: row.not_before_ms as number,
    notAfterMs: row.not_after_ms as number,
    tainted: row.tainted === 1,
    publicKey: Buffer.from(row.public_key as Uint8Array),
    chain: ders(row.chain),
    roots: ders(row.roots),
    crl:
      crl === null
        ? undefined
        : {
            der: Buffer.from(crl),
            number: row.crl_number as number,
            thisUpdateMs: row.crl_this_update_ms as number,
            nextUpdateMs: row.crl_next_update_ms as number,
          },
  };
}
