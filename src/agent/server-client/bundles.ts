/**
 * Trust bundles and revocation lists as the identity server sends them: the own one, without which nothing is trusted, and those of
 * federated trust domains, each of which vouches for its own trust domain and for no other.
 */
import { isDeepStrictEqual } from 'node:util';
import type {
  Bundle,
  JwtAuthority as JwtMessage,
  SyncResponse,
} from '../../../proto/gen/countersign/server/v1/server.ts';
import { err, ok, type Result } from '../../base/errors.ts';
import type { JwtAuthority, TrustBundle } from '../../model/identity.ts';
import type { TrustDomain } from '../../model/ids.ts';
import { parseTrustDomain, pathOf, trustDomainOf } from '../../model/spiffe-id.ts';
import { lastingCopy, lastingDer, parseCertificate } from '../../pki/certificate.ts';
import { readDer, TAG } from '../../pki/der.ts';
import { importPublicKey } from '../../pki/keys.ts';

/** As many as src/pki/verify.ts looks at. */
const MAX_AUTHORITIES = 64;
const MAX_FEDERATED = 256;
const MAX_CRLS = 64;
const MAX_CRL_BYTES = 8 << 20;
const MAX_KEY_ID_LENGTH = 256;
/** Unix seconds that a Date holds. */
const MAX_TIME_SECONDS = 8_640_000_000_000n;

/** The own trust domain's bundle, and of which of its signing keys what they signed is to be renewed now. */
export interface OwnBundle {
  readonly bundle: TrustBundle;
  /** Subject key identifiers, lower-case hex. */
  readonly tainted: ReadonlySet<string>;
}

/** Of certificates alone, as an attestation hands it out: all else comes with the first snapshot. */
export function ownBundleOf(trustDomain: TrustDomain, authorities: readonly Buffer[]): OwnBundle {
  return { bundle: { trustDomain, authorities, sequence: 0n }, tainted: new Set() };
}

export class Bundles {
  readonly #trustDomain: TrustDomain;
  #own: OwnBundle;
  #federated = new Map<TrustDomain, TrustBundle>();
  #crls: readonly Buffer[] = [];

  constructor(trustDomain: TrustDomain, pinned: readonly Buffer[]) {
    this.#trustDomain = trustDomain;
    this.#own = ownBundleOf(trustDomain, pinned);
  }

  /** The same object until something of it changes. */
  get own(): OwnBundle {
    return this.#own;
  }

  set own(own: OwnBundle) {
    this.#own = own;
  }

  /** Of other trust domains, by name. */
  federated(): readonly TrustBundle[] {
    return [...this.#federated.values()].sort((a, b) => (a.trustDomain < b.trustDomain ? -1 : 1));
  }

  /** Of the own trust domain, DER, one for each signing key. */
  crls(): readonly Buffer[] {
    return this.#crls;
  }

  /**
   * True: X.509 authorities of the own trust domain came or went.
   * @param refused told of what was left out of the bundles of others, and of keys that cannot be read
   * @throws Error if the own bundle or the lists cannot be taken: to pass them over would be to go on trusting what was taken back
   */
  apply(message: SyncResponse, refused: (what: string, why: string) => void): boolean {
    const before = this.#own;
    const own = message.bundle === undefined ? before : this.#readOwn(message.bundle, refused);
    if (message.crls !== undefined) this.#crls = readCrls(message.crls.crls);
    this.#applyFederated(message, refused);
    if (!isDeepStrictEqual(before, own)) this.#own = own;
    return !isDeepStrictEqual(before.bundle.authorities, own.bundle.authorities);
  }

  #readOwn(message: Bundle, refused: (what: string, why: string) => void): OwnBundle {
    const known = this.#own.bundle.sequence ?? 0n;
    if (message.certificates.length === 0) throw new Error('the server sent an empty trust bundle');
    if (message.certificates.length > MAX_AUTHORITIES) throw new Error('the server sent too large a trust bundle');
    if (message.sequence < known) {
      throw new Error(
        `the server sent an older trust bundle than this node has seen (sequence ${message.sequence} after ${known}); if it was restored from a backup, hand its bundle.pem to this node anew (server.bundleFile)`,
      );
    }
    const authorities = message.certificates.map((der) => {
      const authority = readAuthority(der, this.#trustDomain);
      if (!authority.ok) throw new Error(`the server sent a trust bundle with a broken authority: ${authority.error}`);
      return authority.value;
    });
    return {
      bundle: {
        trustDomain: this.#trustDomain,
        authorities,
        jwtAuthorities: readJwtAuthorities(message.jwtAuthorities, (why) => refused('JWT authority', why)),
        sequence: message.sequence,
        refreshHintSeconds: message.refreshHintSeconds,
      },
      tainted: new Set(message.taintedKeyIds.map((id) => id.toString('hex'))),
    };
  }

  #applyFederated(message: SyncResponse, refused: (what: string, why: string) => void): void {
    const { snapshot, federatedBundles, removedFederatedBundles } = message;
    const after = new Map(snapshot ? [] : this.#federated);
    for (const name of removedFederatedBundles) after.delete(name as TrustDomain);
    for (const { trustDomain: name, bundle } of federatedBundles) {
      const trustDomain = parseTrustDomain(name);
      const why = !trustDomain.ok
        ? trustDomain.error
        : trustDomain.value === this.#trustDomain
          ? 'it is of our own trust domain, for which no other bundle may vouch'
          : bundle === undefined ||
              bundle.certificates.length > MAX_AUTHORITIES ||
              (after.size >= MAX_FEDERATED && !after.has(trustDomain.value))
            ? 'it is none, or too large, or one too many'
            : undefined;
      if (why !== undefined) refused('federated bundle', why);
      else after.set(name as TrustDomain, readFederated(name as TrustDomain, bundle!, refused));
    }
    this.#federated = after;
  }
}

/** An authority of it that cannot be taken vouches for nothing; the others still do. None at all: its trust domain took back everything. */
function readFederated(
  trustDomain: TrustDomain,
  message: Bundle,
  refused: (what: string, why: string) => void,
): TrustBundle {
  const authorities = message.certificates.flatMap((der) => {
    const authority = readAuthority(der, trustDomain);
    if (!authority.ok)
      refused('federated bundle', `${trustDomain}: an authority of it is left out: ${authority.error}`);
    return authority.ok ? [authority.value] : [];
  });
  return {
    trustDomain,
    authorities,
    jwtAuthorities: readJwtAuthorities(message.jwtAuthorities, (why) =>
      refused('federated bundle', `${trustDomain}: a JWT authority of it is left out: ${why}`),
    ),
    sequence: message.sequence,
    refreshHintSeconds: message.refreshHintSeconds,
  };
}

/** X.509-SVID, section 3: a signing certificate need not have a SPIFFE ID; one that it has is that of its trust domain. */
function readAuthority(der: Buffer, trustDomain: TrustDomain): Result<Buffer, string> {
  const parsed = parseCertificate(der);
  if (!parsed.ok || !parsed.value.isCa) return err('it is not the certificate of an authority');
  const { uriSanCount, spiffeId } = parsed.value;
  const isItsOwn = spiffeId !== undefined && pathOf(spiffeId) === '' && trustDomainOf(spiffeId) === trustDomain;
  if (uriSanCount > 1 || (uriSanCount === 1 && !isItsOwn)) return err('it names another trust domain, or none');
  return ok(lastingDer(parsed.value));
}

function readJwtAuthorities(messages: readonly JwtMessage[], refused: (why: string) => void): JwtAuthority[] {
  const authorities = new Map<string, JwtAuthority>();
  for (const { keyId, publicKey, expiresAt, tainted } of messages.slice(0, MAX_AUTHORITIES)) {
    if (keyId === '' || keyId.length > MAX_KEY_ID_LENGTH || authorities.has(keyId)) refused('its key id is not one');
    else if (importPublicKey(publicKey) === undefined) refused('its key cannot be read');
    else if (expiresAt < 0n || expiresAt > MAX_TIME_SECONDS) refused('its end is not a time');
    else {
      authorities.set(keyId, {
        keyId,
        publicKey: lastingCopy(publicKey),
        ...(expiresAt === 0n ? {} : { expiresAtMs: Number(expiresAt) * 1000 }),
        ...(tainted ? { tainted } : {}),
      });
    }
  }
  if (messages.length > MAX_AUTHORITIES) refused('there are too many');
  return [...authorities.values()];
}

/** Handed on as they are, to whoever verifies them: looked at only as far as they must be whole (RFC 5280, section 5.1). */
function readCrls(crls: readonly Buffer[]): Buffer[] {
  if (crls.length > MAX_CRLS) throw new Error('the server sent too many revocation lists');
  return crls.map((der) => {
    const whole = readDer(der, MAX_CRL_BYTES, (reader) => {
      const list = reader.enter(TAG.sequence);
      list.whole(TAG.sequence);
      list.whole(TAG.sequence);
      list.bitStringBytes();
      list.end();
    });
    if (!whole.ok) throw new Error(`the server sent a revocation list that is none: ${whole.error}`);
    return lastingCopy(der);
  });
}
