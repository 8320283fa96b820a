/** Node and workload certificates for these tests, made by the openssl command: nothing here shares code with what is tested. */
import { execFileSync } from 'node:child_process';
import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { OID_NODE_INCARNATION } from '../../../src/base/registry/oids.ts';
import type { Svid, TrustBundle } from '../../../src/model/identity.ts';
import { parseTrustDomain, spiffeId } from '../../../src/model/spiffe-id.ts';

export interface LeafOptions {
  readonly spiffeId: string;
  /** Decimal; left out: no node certificate. */
  readonly incarnation?: string;
  /** Seconds from now; default one hour ago to one hour ahead. */
  readonly notBefore?: number;
  readonly notAfter?: number;
  /** openssl genpkey options; default P-256. */
  readonly key?: readonly string[];
}

export interface TestAuthority {
  readonly bundle: TrustBundle;
  issue(options: LeafOptions): Svid;
  close(): void;
}

const P256 = ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256'];

export function createTestAuthority(trustDomainName: string): TestAuthority {
  const dir = mkdtempSync(join(tmpdir(), 'cs-channel-ca-'));
  const at = (name: string) => join(dir, name);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  const pem = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' });
  writeFileSync(at('ca.key'), pem);
  writeFileSync(
    at('ca.cnf'),
    `[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nO=${trustDomainName}\n[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nsubjectAltName=URI:spiffe://${trustDomainName}\n`,
  );
  openssl(
    'req',
    '-new',
    '-x509',
    '-key',
    'ca.key',
    '-days',
    '30',
    '-config',
    'ca.cnf',
    '-extensions',
    'ca',
    '-out',
    'ca.pem',
  );
  const authority = new X509Certificate(readFileSync(at('ca.pem'))).raw;
  const trustDomain = parseTrustDomain(trustDomainName);
  if (!trustDomain.ok) throw new Error(trustDomain.error);
  let serial = 0;

  function issue(options: LeafOptions): Svid {
    const name = `leaf-${++serial}`;
    openssl('genpkey', ...(options.key ?? P256), '-out', `${name}.key`);
    const incarnation =
      options.incarnation === undefined ? '' : `${OID_NODE_INCARNATION}=ASN1:UTF8String:${options.incarnation}\n`;
    writeFileSync(
      at(`${name}.cnf`),
      `[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nO=Countersign\n[ca]\ndefault_ca=ca\n[leaf]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nsubjectAltName=URI:${options.spiffeId}\n${incarnation}`,
    );
    openssl('req', '-new', '-key', `${name}.key`, '-config', `${name}.cnf`, '-out', `${name}.csr`);
    writeFileSync(at(`${name}.idx`), '');
    const now = Date.now();
    writeFileSync(
      at(`${name}-ca.cnf`),
      `[ca]\ndefault_ca=c\n[c]\ndatabase=${name}.idx\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\nunique_subject=no\n[p]\norganizationName=optional\n`,
    );
    openssl(
      ...['ca', '-batch', '-notext', '-config', `${name}-ca.cnf`, '-cert', 'ca.pem', '-keyfile', 'ca.key'],
      ...['-in', `${name}.csr`, '-extfile', `${name}.cnf`, '-extensions', 'leaf', '-out', `${name}.pem`],
      ...['-startdate', asn1Time(now + (options.notBefore ?? -3600) * 1000)],
      ...['-enddate', asn1Time(now + (options.notAfter ?? 3600) * 1000)],
    );
    const certificate = new X509Certificate(readFileSync(at(`${name}.pem`)));
    return {
      spiffeId: spiffeId(options.spiffeId),
      chain: [certificate.raw],
      privateKey: createPrivateKey(readFileSync(at(`${name}.key`))),
      notAfterMs: certificate.validToDate.getTime(),
    };
  }

  return {
    bundle: { trustDomain: trustDomain.value, authorities: [authority] },
    issue,
    close: () => rmSync(dir, { recursive: true, force: true }),
  };
}

function asn1Time(ms: number): string {
  return `${new Date(ms).toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`;
}
