/** Vault's PKI engine as the upstream authority: `sign-intermediate`, with a token, an AppRole or a Kubernetes service account. */
import { hash } from 'node:crypto';
import { z } from 'zod';
import { CountersignError } from '../../src/base/errors.ts';
import { readPrivateFile, readPublicFile } from '../../src/base/private-file.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { trustDomainSpiffeId } from '../../src/model/spiffe-id.ts';
import type { Certificate } from '../../src/pki/certificate.ts';
import { encodePem } from '../../src/pki/pem.ts';
import { certificatesOf, isSelfIssued } from './certificates.ts';
import type { Minted, UpstreamAuthority } from './upstream.ts';
import { postToVault, type VaultEndpoint } from './vault-client.ts';

type VaultAuth =
  /** A token in a file, as Vault's agent keeps it fresh. */
  | { readonly type: 'token'; readonly tokenFile: string }
  | { readonly type: 'approle'; readonly mount: string; readonly roleIdFile: string; readonly secretIdFile: string }
  /** The service account's token, which Kubernetes puts into the pod. */
  | { readonly type: 'kubernetes'; readonly mount: string; readonly role: string; readonly tokenFile: string };

export interface VaultUpstreamConfig {
  readonly address: string;
  /** PEM: who vouches for Vault's TLS certificate. undefined: the operating system's authorities. */
  readonly caFile?: string | undefined;
  readonly namespace?: string | undefined;
  /** Where the PKI engine is mounted. */
  readonly mount: string;
  /** One of the engine's issuers. undefined: its default. */
  readonly issuer?: string | undefined;
  readonly auth: VaultAuth;
  /** PEM: roots. Needed if Vault does not know the root of its issuer. */
  readonly bundleFile?: string | undefined;
  /** For each request. */
  readonly timeoutSeconds: number;
}

const pem = z.string().max(64 * 1024);
const signedSchema = z.object({
  data: z.object({ certificate: pem, issuing_ca: pem.optional(), ca_chain: z.array(pem).max(16).nullish() }),
});
const loginSchema = z.object({ auth: z.object({ client_token: z.string().min(1).max(4096) }) });

export class VaultUpstream implements UpstreamAuthority {
  readonly name: string;
  readonly #config: VaultUpstreamConfig;
  readonly #trustDomain: TrustDomain;

  constructor(config: VaultUpstreamConfig, trustDomain: TrustDomain) {
    this.name = `Vault at ${new URL(config.address).host}, ${config.mount}`;
    this.#config = config;
    this.#trustDomain = trustDomain;
  }

  /** Secrets are read and a login is made for each intermediate: there are few, and nothing has to be kept fresh between them. */
  async mint(csr: Buffer, ttlSeconds: number): Promise<Minted> {
    const { address, caFile, namespace, timeoutSeconds } = this.#config;
    const ca = caFile === undefined ? undefined : readPublicFile(caFile).toString('latin1');
    const endpoint: VaultEndpoint = { address, ca, namespace, timeoutMs: timeoutSeconds * 1000 };
    const { token, end } = await this.#logIn(endpoint);
    try {
      return this.#minted(await this.#sign(endpoint, token, csr, ttlSeconds));
    } finally {
      await end();
    }
  }

  #sign(endpoint: VaultEndpoint, token: string, csr: Buffer, ttlSeconds: number): Promise<unknown> {
    const { mount, issuer } = this.#config;
    const path = `${mount}/${issuer === undefined ? 'root' : `issuer/${issuer}`}/sign-intermediate`;
    const body = {
      csr: encodePem('CERTIFICATE REQUEST', csr),
      // each authority has a name of its own, so that two of them are told apart by name
      organization: 'Countersign',
      common_name: 'Countersign intermediate',
      serial_number: hash('sha256', csr, 'hex').slice(0, 40),
      exclude_cn_from_sans: true,
      uri_sans: trustDomainSpiffeId(this.#trustDomain),
      max_path_length: 0,
      ttl: `${Math.floor(ttlSeconds)}s`,
      format: 'pem',
    };
    return postToVault(endpoint, path, token, body, {
      403: `give the token a policy with the capability update on ${path}, or a fresh token`,
      404: 'mount a PKI engine there, or correct ca.upstream.mount and ca.upstream.issuer',
      400: 'correct the engine’s issuer and its limits (max_ttl, allowed path length)',
    });
  }

  async #logIn(endpoint: VaultEndpoint): Promise<{ token: string; end: () => Promise<void> }> {
    const { auth } = this.#config;
    if (auth.type === 'token') return { token: this.#secret('tokenFile', auth.tokenFile), end: async () => {} };
    const path = `auth/${auth.mount}/login`;
    const body =
      auth.type === 'approle'
        ? {
            role_id: this.#secret('roleIdFile', auth.roleIdFile),
            secret_id: this.#secret('secretIdFile', auth.secretIdFile),
          }
        : { role: auth.role, jwt: readPublicFile(auth.tokenFile).toString('utf8').trim() };
    const advice = `correct ca.upstream.auth: what it names is not what Vault has under auth/${auth.mount}`;
    const answer = loginSchema.safeParse(
      await postToVault(endpoint, path, undefined, body, { 400: advice, 403: advice, 404: advice }),
    );
    if (!answer.success)
      throw new CountersignError('bad-input', `${this.name}: the login gave no token; see ca.upstream.auth`);
    const token = answer.data.auth.client_token;
    // a token that is not needed any more is one less to be stolen; it ends by itself if this fails
    return {
      token,
      end: () =>
        postToVault(endpoint, 'auth/token/revoke-self', token, {}, {}).then(
          () => {},
          () => {},
        ),
    };
  }

  #secret(field: string, path: string): string {
    let text: string;
    try {
      text = readPrivateFile(path, 16 * 1024)
        .toString('utf8')
        .trim();
    } catch (thrown) {
      if (!(thrown instanceof CountersignError)) throw thrown;
      throw new CountersignError(thrown.code, `ca.upstream.auth.${field}: ${thrown.message}`, { cause: thrown });
    }
    if (/^[\x21-\x7e]+$/.test(text)) return text;
    throw new CountersignError(
      'bad-input',
      `ca.upstream.auth.${field}: ${path} is empty or not one line; write the secret alone there`,
    );
  }

  #minted(answer: unknown): Minted {
    const signed = signedSchema.safeParse(answer);
    if (!signed.success) throw this.#problem('its answer holds no certificate; see that the mount is a PKI engine');
    const { certificate, issuing_ca, ca_chain } = signed.data.data;
    const minted = this.#certificates(certificate)[0]!;
    const given = [...(issuing_ca === undefined ? [] : [issuing_ca]), ...(ca_chain ?? [])].flatMap((text) =>
      this.#certificates(text),
    );
    const above = chainAbove(minted, given);
    const { bundleFile } = this.#config;
    const bundle = bundleFile === undefined ? [] : certificatesOf(readPublicFile(bundleFile).toString('latin1'));
    const roots = [...bundle, ...above.filter(isSelfIssued)];
    if (roots.length === 0)
      throw this.#problem('it does not know the root of its issuer; name a file with it by ca.upstream.bundleFile');
    return {
      chain: [minted, ...above.filter((one) => !isSelfIssued(one))].map((one) => one.der),
      roots: [...new Map(roots.map((root) => [root.digest, root.der])).values()],
    };
  }

  #certificates(text: string): Certificate[] {
    try {
      return certificatesOf(text);
    } catch (thrown) {
      throw this.#problem(`its answer: ${(thrown as Error).message}; see the engine’s issuer`);
    }
  }

  #problem(what: string): CountersignError {
    return new CountersignError('bad-input', `${this.name}: ${what}`);
  }
}

/** Each one's issuer in turn, by name: Vault gives them in any order, and the issuer twice. */
function chainAbove(first: Certificate, given: readonly Certificate[]): Certificate[] {
  const above: Certificate[] = [];
  for (let below = first; !isSelfIssued(below); below = above.at(-1)!) {
    const issuer = given.find((one) => one.subjectDer.equals(below.issuerDer) && !above.includes(one));
    if (issuer === undefined) break;
    above.push(issuer);
  }
  return above;
}
