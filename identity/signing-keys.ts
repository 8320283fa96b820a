/**
 * The CA's signing keys as everyone else gets to know of them: each change of the bundle, the CRLs and the revoked keys is published, written
 * to bundle.pem and audited; and before a key is revoked or tainted, nothing of the server's own rests on it any more.
 */
import { chmodSync, renameSync, writeFileSync } from 'node:fs';
import type { AuthorityInfo, AuthorityKind, CaChange, CertificateAuthority } from '../ca/api.ts';
import { asError, CountersignError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import { encodePem } from '../src/pki/pem.ts';
import type { Feed } from './feed.ts';
import type { Signer } from './signer.ts';
import type { SyncHub } from './sync.ts';

export interface SigningKeysOptions {
  readonly ca: CertificateAuthority;
  readonly feed: Feed;
  readonly signer: Signer;
  readonly hub: SyncHub;
  /** Gives the server a new SVID and tells everyone. */
  readonly renew: () => Promise<void>;
  /** The trust bundle in PEM, for who sets up a node. */
  readonly bundleFile: string;
  /** Resolves when what was written until now cannot be lost. */
  readonly durable: () => Promise<void>;
  readonly audit: AuditSink;
  readonly log: Logger;
}

/** Agents that do not have the latest bundle. */
export interface Behind {
  /** Connected and slow. */
  readonly slow: readonly string[];
  /** Not connected: they get it when they are back, unless the server's own SVID is under a key by then that they do not know. */
  readonly away: readonly string[];
}

export class SigningKeys {
  readonly #options: SigningKeysOptions;
  readonly #stop: () => void;
  /** Of the latest change that agents were told of. */
  #version: number;

  constructor(options: SigningKeysOptions) {
    this.#options = options;
    this.#version = options.feed.version;
    this.#writeBundle();
    this.#stop = options.ca.onChange((change) => this.#publish(change));
  }

  /** Feed version in which the latest change was. */
  get version(): number {
    return this.#version;
  }

  /** @param waitMs for agents that are connected now. */
  async behind(waitMs: number): Promise<Behind> {
    const { hub } = this.#options;
    const { missing } = await hub.inForce(this.#version, waitMs);
    const live = new Set<string>(hub.live());
    return { slow: missing.filter((node) => live.has(node)), away: missing.filter((node) => !live.has(node)) };
  }

  /** @throws CountersignError as CertificateAuthority.taint */
  async taint(kind: AuthorityKind, id: string): Promise<AuthorityInfo> {
    const authority = await this.#options.ca.taint(kind, id);
    await this.#leave(id);
    return authority;
  }

  /** @throws CountersignError as CertificateAuthority.revokeAuthority */
  async revoke(kind: AuthorityKind, id: string, reason: string): Promise<AuthorityInfo> {
    const { ca } = this.#options;
    const known = ca.authorities().find((authority) => authority.kind === kind && authority.id === id);
    if (known === undefined) {
      throw new CountersignError('not-found', `no ${kind} authority ${id}; see: countersign ca list`);
    }
    // agents refuse a server whose signing key is revoked: it shows another certificate before they are told
    if (known.state === 'old') await this.#leave(id);
    return ca.revokeAuthority(kind, id, reason);
  }

  close(): void {
    this.#stop();
  }

  async #leave(id: string): Promise<void> {
    if (this.#options.signer.restsOn(id)) await this.#options.renew();
  }

  #publish({ bundle, crls, revocations = [], acts = [] }: CaChange): void {
    const { feed, audit, log } = this.#options;
    for (const { act, authority } of acts) {
      const { kind, id, state, keyType, notAfterMs, upstream } = authority;
      audit.emit({ kind: 'authority.changed', detail: { act, kind, id, state, keyType, notAfterMs, upstream } });
      log.info({ act, kind, id }, 'a signing key changed');
    }
    // of signing keys the act says it; what was signed for a server below falls with what named it
    for (const { what, sequence, reason } of acts.length > 0 ? [] : revocations) {
      const [kind, value] = Object.entries(what)[0] as [string, string];
      const detail = { what: kind, value, sequence: Number(sequence), text: reason };
      audit.emit({ kind: 'svid.revoked', reason: 'REVOKED_BY_ADMIN', detail });
    }
    this.#version = feed.publish({
      ...(bundle === true ? { bundle } : {}),
      ...(crls === true ? { crls } : {}),
      ...(revocations.length > 0 ? { revocations } : {}),
    });
    if (bundle === true) this.#options.durable().then(() => this.#writeBundle(), this.#failed);
  }

  readonly #failed = (thrown: unknown) => {
    this.#options.log.error({ err: asError(thrown) }, `${this.#options.bundleFile} could not be written`);
  };

  #writeBundle(): void {
    const { ca, bundleFile } = this.#options;
    const certificates = ca.bundle().authorities.map((der) => encodePem('CERTIFICATE', der));
    writeFileSync(`${bundleFile}.new`, certificates.join(''), { mode: 0o644 });
    chmodSync(`${bundleFile}.new`, 0o644);
    renameSync(`${bundleFile}.new`, bundleFile);
  }
}
