/** An upstream authority in files: its certificate and its key. They are read anew for each intermediate, so that replacing them is enough. */
import type { Clock } from '../../src/base/clock.ts';
import { CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile, readPublicFile } from '../../src/base/private-file.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { trustDomainSpiffeId } from '../../src/model/spiffe-id.ts';
import type { Certificate } from '../../src/pki/certificate.ts';
import { verifyCsr } from '../../src/pki/csr.ts';
import { KEY_USAGE } from '../../src/pki/extensions.ts';
import { privateKeyFromPem } from '../../src/pki/keys.ts';
import { buildTbs } from '../build.ts';
import { SoftwareKey } from '../keys/software-key.ts';
import { lintTbs } from '../lint.ts';
import { BACKDATE_SECONDS, planIntermediate } from '../profile.ts';
import { randomSerial } from '../serial.ts';
import { signCertificate } from '../sign.ts';
import { type Signer, signerOf } from '../signer.ts';
import { certificatesOf, isSelfIssued } from './certificates.ts';
import type { Minted, UpstreamAuthority } from './upstream.ts';

export interface DiskUpstreamConfig {
  /** PEM: the upstream authority's certificate, then those between it and its root, in order. */
  readonly certFile: string;
  /** PEM, PKCS#8, 0600. */
  readonly keyFile: string;
  /** PEM: roots. Needed unless `certFile` begins with a root. */
  readonly bundleFile?: string | undefined;
}

interface Upstream {
  readonly signer: Signer;
  readonly certificate: Certificate;
  /** DER. */
  readonly chain: readonly Buffer[];
  readonly roots: readonly Buffer[];
}

export class DiskUpstream implements UpstreamAuthority {
  readonly name: string;
  readonly #config: DiskUpstreamConfig;
  readonly #trustDomain: TrustDomain;
  readonly #clock: Clock;

  /** @throws CountersignError if the files will not do. */
  constructor(config: DiskUpstreamConfig, trustDomain: TrustDomain, clock: Clock) {
    this.name = `upstream authority ${config.certFile}`;
    this.#config = config;
    this.#trustDomain = trustDomain;
    this.#clock = clock;
    this.#read();
  }

  async mint(csr: Buffer, ttlSeconds: number): Promise<Minted> {
    const spki = verifyCsr(csr);
    if (!spki.ok) throw new CountersignError('bad-input', `the request for an intermediate was refused: ${spki.error}`);
    const { signer, certificate, chain, roots } = this.#read();
    const second = Math.floor(this.#clock.nowMs() / 1000) * 1000;
    const plan = planIntermediate(this.#trustDomain, {
      notBeforeMs: Math.max(second - BACKDATE_SECONDS * 1000, certificate.notBeforeMs),
      notAfterMs: Math.min(second + Math.floor(ttlSeconds) * 1000, certificate.notAfterMs),
    });
    const linted = lintTbs(buildTbs(plan, signer, spki.value, randomSerial()), plan, signer, spki.value);
    if (!linted.ok)
      throw this.#problem('certFile', `no intermediate under it; what must hold: ${linted.error.join('; ')}`);
    return { chain: [signCertificate(linted.value), ...chain], roots };
  }

  #read(): Upstream {
    const { certFile, keyFile, bundleFile } = this.#config;
    const [certificate, ...above] = this.#certificates('certFile', certFile);
    this.#check(certificate!);
    const key = this.#key(keyFile);
    if (!key.publicKey.equals(certificate!.spki)) {
      throw this.#problem('keyFile', `it is not the key of ${certFile}; replace both together`);
    }
    const all = [certificate!, ...above];
    const bundle = bundleFile === undefined ? [] : this.#certificates('bundleFile', bundleFile);
    const roots = [...bundle, ...all.filter(isSelfIssued)];
    if (roots.length === 0) {
      throw this.#problem('bundleFile', 'the upstream certificate is not a root; name a file with its root');
    }
    return {
      signer: signerOf(key, certificate!),
      certificate: certificate!,
      chain: all.filter((one) => !isSelfIssued(one)).map((one) => one.der),
      roots: [...new Map(roots.map((root) => [root.digest, root.der])).values()],
    };
  }

  #check(certificate: Certificate): void {
    const { certFile } = this.#config;
    const refuse = (what: string) => this.#problem('certFile', what);
    const nowMs = this.#clock.nowMs();
    if (!certificate.isCa || ((certificate.keyUsage ?? 0) & KEY_USAGE.keyCertSign) === 0) {
      throw refuse('its first certificate may not sign others (cA, keyCertSign); name an authority’s');
    }
    if (certificate.pathLength === 0) {
      throw refuse('its path length of 0 allows no further authority; have it signed with 1 or more');
    }
    if (certificate.hasNameConstraints)
      throw refuse('it has name constraints, which agents refuse; have it signed without');
    const { uriSanCount, spiffeId } = certificate;
    if (uriSanCount > 0 && (uriSanCount > 1 || spiffeId !== trustDomainSpiffeId(this.#trustDomain))) {
      throw refuse(`it is of another trust domain than ${this.#trustDomain}; name one of this trust domain or of none`);
    }
    if (nowMs < certificate.notBeforeMs) throw refuse(`it is not valid yet; check the clock, or replace ${certFile}`);
    if (nowMs > certificate.notAfterMs) {
      throw refuse(`it ended at ${new Date(certificate.notAfterMs).toISOString()}; replace ${certFile} and its key`);
    }
  }

  #key(path: string): SoftwareKey {
    try {
      const text = readPrivateFile(path).toString('latin1');
      if (/^-----BEGIN (EC|RSA|ENCRYPTED) PRIVATE KEY-----/m.test(text)) {
        throw new CountersignError(
          'bad-input',
          `not plain PKCS#8; write it anew with: openssl pkcs8 -topk8 -nocrypt -in ${path} -out FILE`,
        );
      }
      return new SoftwareKey('upstream', privateKeyFromPem(text));
    } catch (thrown) {
      throw this.#named('keyFile', path, thrown);
    }
  }

  #certificates(field: string, path: string): Certificate[] {
    try {
      return certificatesOf(readPublicFile(path).toString('latin1'));
    } catch (thrown) {
      throw this.#named(field, path, thrown);
    }
  }

  #named(field: string, path: string, thrown: unknown): unknown {
    if (!(thrown instanceof CountersignError)) return thrown;
    const where = thrown.message.startsWith(path) ? '' : `${path}: `;
    return new CountersignError(thrown.code, `ca.upstream.${field}: ${where}${thrown.message}`, { cause: thrown });
  }

  #problem(field: 'certFile' | 'keyFile' | 'bundleFile', what: string): CountersignError {
    const path = this.#config[field];
    return new CountersignError('bad-input', `ca.upstream.${field}: ${path === undefined ? '' : `${path}: `}${what}`);
  }
}
