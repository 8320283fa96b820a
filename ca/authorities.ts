/**
 * The signing keys at work, X.509 and JWT each with slots as SPIRE has them: one is prepared at half the life of the one that signs and
 * published at once, signs from a sixth before its end, and leaves the bundle when nothing lives that it signed. What is begun is in
 * slots.ts's table first; `open` finishes or undoes what a crash left, so that it may come at any moment.
 */
import { hash, randomBytes } from 'node:crypto';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError } from '../src/base/errors.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { makeAuthority } from './authority.ts';
import type { Issuing } from './issuance.ts';
import type { JwtIssuing } from './jwt.ts';
import type { KeyManager, SigningKey } from './keys/key-manager.ts';
import type { KeyType } from './keys/key-type.ts';
import type { Ledger } from './ledger.ts';
import {
  type AuthorityInfo,
  type AuthorityKind,
  activationMs,
  bundleOf,
  type CaBundle,
  certificateOf,
  infoOf,
  KINDS,
  madeOf,
  preparationMs,
} from './lives.ts';
import { BACKDATE_SECONDS } from './profile.ts';
import { signerOf } from './signer.ts';
import { isPublished, type Made, type Slot, type Slots } from './slots.ts';
import type { UpstreamAuthority } from './upstream/upstream.ts';

/** How long an authority stays after the last of what it signed has ended: clocks differ. */
const KEEP_MS = 60_000;
export type AuthorityAct = 'prepared' | 'activated' | 'tainted' | 'revoked' | 'removed';

export interface AuthoritiesOptions {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly slots: Slots;
  readonly ledger: Ledger;
  /** Where new keys are made. */
  readonly keys: KeyManager;
  /** Where keys may lie besides, that were made under other settings. */
  readonly formerKeys: KeyManager | undefined;
  readonly keyType: KeyType;
  readonly jwtKeyType: KeyType;
  readonly authorityTtlSeconds: number;
  readonly jwtKeyTtlSeconds: number;
  readonly upstream: UpstreamAuthority | undefined;
  /** Go on with a new authority when the key of the active one is gone; else that is an error. */
  readonly replaceLostKeys: boolean;
  readonly acted: (act: AuthorityAct, authority: AuthorityInfo) => void;
}

export class Authorities {
  readonly #options: AuthoritiesOptions;
  readonly #slots: Slots;
  readonly #keys = new Map<string, SigningKey>();
  /** By key id: when the last of what an old one signed ends. */
  readonly #ends = new Map<string, number>();
  #issuing: Issuing | undefined;
  #jwtIssuing: JwtIssuing | undefined;
  #bundle: CaBundle | undefined;

  private constructor(options: AuthoritiesOptions) {
    this.#options = options;
    this.#slots = options.slots;
  }

  /** Loads the keys; finishes or undoes what was begun. @throws CountersignError naming a key that is gone. */
  static async open(options: AuthoritiesOptions): Promise<Authorities> {
    const authorities = new Authorities(options);
    for (const slot of options.slots.list()) await authorities.#resume(slot);
    authorities.#changed();
    return authorities;
  }

  keyOf(slot: Slot): SigningKey | undefined {
    return this.#keys.get(slot.keyId);
  }

  /** @throws CountersignError unavailable */
  issuing(): Issuing {
    return this.#issuing ?? none('x509');
  }

  /** @throws CountersignError unavailable */
  jwtIssuing(): JwtIssuing {
    return this.#jwtIssuing ?? none('jwt');
  }

  bundle(): CaBundle {
    const { authorityTtlSeconds, jwtKeyTtlSeconds } = this.#options;
    const life = Math.min(authorityTtlSeconds, jwtKeyTtlSeconds);
    this.#bundle ??= bundleOf(this.#slots.list(), this.#slots.sequence, life);
    return this.#bundle;
  }

  list(): AuthorityInfo[] {
    return this.#slots.list().flatMap((slot) => infoOf(slot) ?? []);
  }

  find(kind: AuthorityKind, id: string): Slot {
    const slot = this.#slots.list().find((each) => each.kind === kind && each.id === id && infoOf(each) !== undefined);
    if (slot === undefined)
      throw new CountersignError('not-found', `no ${kind} authority ${id}; see: countersign ca list`);
    return slot;
  }

  async prepare(kind: AuthorityKind): Promise<AuthorityInfo> {
    const ready = this.#prepared(kind);
    if (ready !== undefined) return infoOf(ready)!;
    const { clock, keys } = this.#options;
    const keyType = kind === 'x509' ? this.#options.keyType : this.#options.jwtKeyType;
    const keyId = `${kind}-${randomBytes(8).toString('hex')}`;
    this.#slots.begin(keyId, kind, keyType);
    try {
      const key = await keys.generate(keyId, keyType);
      this.#slots.publish(keyId, await this.#make(kind, key), clock.nowMs());
      this.#keys.set(keyId, key);
    } catch (thrown) {
      await this.#drop(keyId);
      throw thrown;
    }
    return this.#act('prepared', keyId);
  }

  /** Takes effect in this turn: what is signed later is signed by it. */
  activate(kind: AuthorityKind, id?: string): AuthorityInfo {
    const slot = id === undefined ? this.#prepared(kind) : this.find(kind, id);
    if (slot === undefined || slot.state !== 'prepared') {
      const which = slot === undefined ? `no ${kind} authority is prepared` : `${id} is ${slot.state}, not prepared`;
      throw new CountersignError('not-found', `${which}; see: countersign ca list, countersign ca prepare`);
    }
    if (slot.notBeforeMs > this.#options.clock.nowMs()) {
      throw new CountersignError('unavailable', `${slot.id} is not valid yet; check the clock`);
    }
    const before = this.#slots.active(kind);
    this.#slots.activate(slot.keyId);
    // one that signed nothing is seen as old for a while, too
    if (before !== undefined)
      this.#ends.set(before.keyId, Math.max(this.#lastEndMs(before), this.#options.clock.nowMs()));
    return this.#act('activated', slot.keyId);
  }

  taint(kind: AuthorityKind, id: string): AuthorityInfo {
    const slot = this.find(kind, id);
    if (slot.state !== 'old') {
      const first =
        slot.state === 'active' ? 'activate another one first' : 'only an old one has signed what can be renewed';
      throw new CountersignError('bad-input', `${id} is ${slot.state}; ${first}`);
    }
    if (slot.tainted) return infoOf(slot)!;
    this.#slots.taint(slot.keyId, this.#options.clock.nowMs());
    return this.#act('tainted', slot.keyId);
  }

  /** @throws CountersignError bad-input for one that signs: whatever it signed is about to be worth nothing. */
  checkRevocable(kind: AuthorityKind, id: string): Slot {
    const slot = this.find(kind, id);
    if (slot.state === 'active') throw new CountersignError('bad-input', `${id} is active; activate another one first`);
    if (slot.state === 'revoked') throw new CountersignError('already-exists', `${id} is revoked`);
    return slot;
  }

  /**
   * It leaves the bundle together with `also`, then its key is deleted. @param last signs what must still be signed with it before, until when.
   */
  async revoke(slot: Slot, also: () => void, last: (slot: Slot, untilMs: number) => void): Promise<AuthorityInfo> {
    // below an upstream root, its certificates still lead to something trusted: its last CRL is served until they end
    const state = slot.kind === 'x509' && slot.chain.length > 0 ? 'revoked' : 'leaving';
    const info: AuthorityInfo = { ...infoOf(slot)!, state: 'revoked' };
    this.#slots.withdraw(slot.keyId, state, this.#options.clock.nowMs(), also);
    this.#changed();
    this.#options.acted('revoked', info);
    await this.#finishRevocation(this.#slots.get(slot.keyId), last);
    return info;
  }

  /** After open, when CRLs can be signed: the end of a revocation that a crash cut off. */
  async resumeRevocations(last: (slot: Slot, untilMs: number) => void): Promise<void> {
    for (const slot of this.#slots.list()) {
      if (slot.state === 'revoked' && this.#keys.has(slot.keyId)) await this.#finishRevocation(slot, last);
    }
  }

  /** Does what is due by the clock: each as far as it can, whatever becomes of the others. @throws the first that failed */
  async upkeep(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = (work: () => Promise<void>) => work().catch((thrown: unknown) => failures.push(thrown));
    for (const slot of this.#slots.list()) {
      if (this.#removalMs(slot) <= this.#options.clock.nowMs()) await attempt(() => this.#remove(slot));
    }
    for (const kind of KINDS) await attempt(() => this.#rotate(kind));
    if (failures.length > 0) throw failures[0];
  }

  async #rotate(kind: AuthorityKind): Promise<void> {
    const active = this.#slots.active(kind);
    const nowMs = this.#options.clock.nowMs();
    if (active === undefined || nowMs > active.notAfterMs || nowMs >= preparationMs(active)) await this.prepare(kind);
    // making a key may have taken a while
    if (this.#options.clock.nowMs() >= activationMs(this.#slots.active(kind), this.#prepared(kind)))
      this.activate(kind);
  }

  /** Unix ms. */
  nextDueMs(): number {
    return Math.min(
      ...this.#slots.list().map((slot) => {
        if (slot.state !== 'active') return this.#removalMs(slot);
        const prepared = this.#prepared(slot.kind);
        return prepared === undefined ? preparationMs(slot) : activationMs(slot, prepared);
      }),
    );
  }

  #prepared(kind: AuthorityKind): Slot | undefined {
    return this.#slots.list().find((slot) => slot.kind === kind && slot.state === 'prepared');
  }

  async #resume(slot: Slot): Promise<void> {
    const { clock, replaceLostKeys, keys, formerKeys } = this.#options;
    if (slot.state === 'making' || slot.state === 'leaving') return this.#drop(slot.keyId);
    const key = (await keys.load(slot.keyId)) ?? (await formerKeys?.load(slot.keyId));
    if (key !== undefined) {
      if (!key.publicKey.equals(slot.publicKey)) {
        throw new CountersignError(
          'bad-input',
          `the key ${slot.keyId} is not the one the ledger knows by that name; restore keys and ledger from one backup`,
        );
      }
      this.#keys.set(slot.keyId, key);
    } else if (slot.state === 'prepared') {
      this.#slots.withdraw(slot.keyId, 'leaving', clock.nowMs());
      await this.#drop(slot.keyId);
    } else if (slot.state === 'active') {
      if (!replaceLostKeys) {
        throw new CountersignError(
          'not-found',
          `the key ${slot.keyId} of the active ${slot.kind} authority ${slot.id} is missing; restore it from a backup, or if it is lost for good set ca.replaceLostKeys: true and give every agent the new bundle.pem`,
        );
      }
      this.#slots.lose(slot.keyId);
    }
  }

  async #make(kind: AuthorityKind, key: SigningKey): Promise<Made> {
    const { clock, authorityTtlSeconds, jwtKeyTtlSeconds, trustDomain, upstream } = this.#options;
    const second = Math.floor(clock.nowMs() / 1000) * 1000;
    const notBeforeMs = second - BACKDATE_SECONDS * 1000;
    if (kind === 'jwt') {
      const id = hash('sha256', key.publicKey, 'hex').slice(0, 40);
      const notAfterMs = second + jwtKeyTtlSeconds * 1000;
      return { id, publicKey: key.publicKey, chain: [], roots: [], notBeforeMs, notAfterMs };
    }
    const notAfterMs = second + authorityTtlSeconds * 1000;
    return madeOf(await makeAuthority(key, trustDomain, { notBeforeMs, notAfterMs }, upstream));
  }

  async #finishRevocation(slot: Slot, last: (slot: Slot, untilMs: number) => void): Promise<void> {
    if (slot.state !== 'revoked') return this.#drop(slot.keyId);
    last(slot, this.#lastEndMs(slot) + KEEP_MS);
    await this.#deleteKey(slot.keyId);
  }

  async #remove(slot: Slot): Promise<void> {
    const info = infoOf(slot);
    if (isPublished(slot)) this.#slots.withdraw(slot.keyId, 'leaving', this.#options.clock.nowMs());
    await this.#drop(slot.keyId);
    this.#changed();
    if (info !== undefined) this.#options.acted('removed', info);
  }

  async #drop(keyId: string): Promise<void> {
    await this.#deleteKey(keyId);
    this.#slots.forget(keyId);
  }

  async #deleteKey(keyId: string): Promise<void> {
    await this.#options.keys.remove(keyId);
    await this.#options.formerKeys?.remove(keyId);
    this.#keys.delete(keyId);
  }

  #act(act: AuthorityAct, keyId: string): AuthorityInfo {
    this.#changed();
    const info = infoOf(this.#slots.get(keyId))!;
    this.#options.acted(act, info);
    return info;
  }

  #changed(): void {
    this.#bundle = undefined;
    this.#issuing = undefined;
    this.#jwtIssuing = undefined;
    const x509 = this.#slots.active('x509');
    const key = x509 === undefined ? undefined : this.keyOf(x509);
    if (x509 !== undefined && key !== undefined) {
      const certificates = [...x509.chain, ...(x509.chain.length > 0 ? [] : x509.roots)].map(certificateOf);
      const signer = signerOf(key, certificates[0]!);
      // below an upstream, the chain may end before its first certificate does
      const issuer = { ...signer.issuer!, notAfterMs: Math.min(x509.notAfterMs, signer.issuer!.notAfterMs) };
      this.#issuing = { signer: { key, issuer }, id: x509.id, chain: x509.chain };
    }
    const jwt = this.#slots.active('jwt');
    const jwtKey = jwt === undefined ? undefined : this.keyOf(jwt);
    if (jwt !== undefined && jwtKey !== undefined) {
      this.#jwtIssuing = { key: jwtKey, id: jwt.id, notAfterMs: jwt.notAfterMs };
    }
  }

  #removalMs(slot: Slot): number {
    // it came to its end before its turn: the server was down
    if (slot.state === 'prepared') return slot.notAfterMs;
    if (slot.state !== 'old' && slot.state !== 'revoked') return Number.POSITIVE_INFINITY;
    return this.#lastEndMs(slot) + KEEP_MS;
  }

  #lastEndMs({ keyId, kind, id }: Slot): number {
    const known = this.#ends.get(keyId);
    if (known !== undefined) return known;
    const end = this.#options.ledger.lastEndMs(kind, id);
    this.#ends.set(keyId, end);
    return end;
  }
}

function none(kind: AuthorityKind): never {
  throw new CountersignError('unavailable', `no ${kind} authority is active`);
}
