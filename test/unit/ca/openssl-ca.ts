/** Certificates by openssl: authorities and intermediates that our own code had no hand in. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface OpensslCa {
  readonly name: string;
  readonly certFile: string;
  readonly keyFile: string;
  /** PEM. */
  readonly certificate: string;
}

export interface CertificateWish {
  /** Whose key; PEM request. */
  readonly csr: string;
  readonly seconds: number;
  /** Lines of an openssl extension section. */
  readonly extensions: string;
  readonly subject?: string;
  /** From now; half a minute ago if not given. */
  readonly beginsInSeconds?: number;
}

const AUTHORITY =
  'basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n';
export const INTERMEDIATE = `${AUTHORITY.replace('CA:true', 'CA:true,pathlen:0')}authorityKeyIdentifier=keyid\n`;

const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'pipe'] }).toString();

const KEY_ARGS: Record<string, string[]> = {
  p256: ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256'],
  p384: ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-384'],
  rsa3072: ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:3072'],
};

/** Makes authorities in a directory. */
export class OpensslCas {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** @param issuer undefined: self-signed. */
  make(
    name: string,
    {
      issuer,
      key = 'p256',
      extensions = AUTHORITY,
      days = 30,
    }: { issuer?: OpensslCa; key?: string; extensions?: string; days?: number } = {},
  ): OpensslCa {
    const keyFile = this.key(name, key);
    const csr = this.#path(`${name}.csr`);
    openssl('req', '-new', '-key', keyFile, '-subj', `/O=Upstream/CN=${name}`, '-out', csr);
    const certificate = this.sign(issuer ?? { name, certFile: '', keyFile, certificate: '' }, {
      csr: readFileSync(csr, 'utf8'),
      seconds: days * 86_400,
      extensions: issuer === undefined ? extensions : `${extensions}authorityKeyIdentifier=keyid\n`,
    });
    const certFile = this.#path(`${name}.crt`);
    writeFileSync(certFile, certificate);
    return { name, certFile, keyFile, certificate };
  }

  /** A private key's file, 0600. */
  key(name: string, kind = 'p256'): string {
    const path = this.#path(`${name}.key`);
    writeFileSync(path, openssl('genpkey', ...KEY_ARGS[kind]!), { mode: 0o600 });
    return path;
  }

  /** PEM. By `openssl ca`, as that alone lets one say when a certificate begins and ends. */
  sign(ca: OpensslCa, { csr, seconds, extensions, subject, beginsInSeconds = -30 }: CertificateWish): string {
    const work = mkdtempSync(this.#path('sign-'));
    const at = (name: string, content = '') => {
      writeFileSync(join(work, name), content);
      return join(work, name);
    };
    const settings = at(
      'settings',
      `[ca]\ndefault_ca=own\n[own]\ndatabase=${at('database')}\nnew_certs_dir=${work}\nrand_serial=yes\nunique_subject=no\ndefault_md=sha256\npolicy=any\n[any]\nO=optional\nCN=optional\nserialNumber=optional\n[wanted]\n${extensions}`,
    );
    const endMs = Date.now() + seconds * 1000;
    const beginMs = Date.now() + beginsInSeconds * 1000;
    return openssl(
      ...['ca', '-batch', '-notext', '-config', settings, '-in', at('request', csr), '-extensions', 'wanted'],
      ...['-startdate', dateOf(beginMs), '-enddate', dateOf(endMs), '-keyfile', ca.keyFile],
      ...(ca.certFile === '' ? ['-selfsign'] : ['-cert', ca.certFile]),
      ...(subject === undefined ? [] : ['-subj', subject]),
    );
  }

  #path(name: string): string {
    return join(this.#directory, name);
  }
}

/** YYYYMMDDHHMMSSZ */
function dateOf(ms: number): string {
  return new Date(ms).toISOString().replace(/[-:T]|\.\d+/g, '');
}
