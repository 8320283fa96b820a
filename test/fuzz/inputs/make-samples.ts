/** Writes samples.json anew: what honest parties send, for the fuzzer to damage. Data, so that a seed means the same input on every machine.
 *
 *     node test/fuzz/inputs/make-samples.ts */
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, sign } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createCsr } from '../../../src/pki/csr.ts';
import { jwtFrom, jwtSvidSigningInput } from '../../../src/pki/jwt.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import { encodeSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';
import { FRONTEND, NAME_A, NODE_A, START, TD, withCa } from '../../unit/ca/support.ts';
import { ca, leaf, name } from '../../unit/pki/support/forge.ts';

const authorities: Buffer[] = [];
const leaves: Buffer[] = [];

const root = ca();
const intermediate = ca({ issuer: root, subject: name('Intermediate') });
authorities.push(root.der);
leaves.push(leaf(root).der, leaf(intermediate).der);
for (const keyType of ['ec-p256', 'ec-p384', 'rsa-3072'] as const) {
  await withCa(async ({ open }) => {
    const authority = await open({ keyType });
    const csr = createCsr(generateKey());
    const issued = [
      await authority.issueWorkloadSvid({
        csr,
        spiffeId: FRONTEND,
        node: NODE_A,
        requester: NODE_A,
        dnsNames: ['web.example.org'],
      }),
      await authority.issueNodeSvid({ csr, name: NAME_A, incarnation: 7n, requester: NODE_A }),
    ];
    for (const outcome of issued) if (outcome.ok) leaves.push(outcome.value.chain[0]!);
    authorities.push(...authority.bundle().authorities);
  });
}

/** As OpenSSL writes them, with a subject and the extensions that one would like to have. */
function opensslCsr(...key: string[]): Buffer {
  const directory = mkdtempSync(join(tmpdir(), 'cs-samples-'));
  try {
    const file = (of: string) => join(directory, of);
    execFileSync('openssl', ['genpkey', ...key, '-out', file('key')], { stdio: 'pipe' });
    const wishes = [
      'subjectAltName=URI:spiffe://example.org/other,DNS:example.org',
      'basicConstraints=critical,CA:TRUE',
    ];
    const more = ['-subj', '/C=US/O=SPIRE', ...wishes.flatMap((wish) => ['-addext', wish])];
    execFileSync(
      'openssl',
      ['req', '-new', '-sha256', '-key', file('key'), ...more, '-outform', 'DER', '-out', file('csr')],
      { stdio: 'pipe' },
    );
    return readFileSync(file('csr'));
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const csrs = [
  createCsr(generateKey()),
  opensslCsr('-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-384'),
  opensslCsr('-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:3072'),
];

const ecKey = generateKey();
const rsaKey = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
const common = { spiffeId: FRONTEND, issuedAt: START / 1000, expiresAt: START / 1000 + 300 };
const byEc = jwtSvidSigningInput({ ...common, alg: 'ES256', kid: 'ec', audience: ['db', 'cache'] });
const byRsa = jwtSvidSigningInput({
  ...common,
  alg: 'RS256',
  kid: 'rsa',
  audience: ['db'],
  issuer: 'https://oidc.example.org',
  jti: 'a',
});
const tokens = [
  jwtFrom(byEc, sign('sha256', Buffer.from(byEc), { key: ecKey, dsaEncoding: 'ieee-p1363' })),
  jwtFrom(byRsa, sign('sha256', Buffer.from(byRsa), rsaKey)),
];
const jwtAuthorities = [
  { keyId: 'ec', publicKey: publicKeyDer(ecKey) },
  { keyId: 'rsa', publicKey: publicKeyDer(rsaKey) },
];
const documents = [
  encodeSpiffeBundle({ trustDomain: TD, authorities, jwtAuthorities, sequence: 42n, refreshHintSeconds: 300 }),
  encodeSpiffeBundle({ trustDomain: TD, authorities: [root.der], jwtAuthorities }),
  encodeSpiffeBundle({ trustDomain: TD, authorities: [] }),
];

const base64 = (list: readonly Buffer[]) => list.map((der) => der.toString('base64'));
const samples = {
  nowMs: START,
  authorities: base64(authorities),
  intermediates: base64([intermediate.der]),
  leaves: base64(leaves),
  csrs: base64(csrs),
  tokens,
  documents,
};
writeFileSync(join(import.meta.dirname, 'samples.json'), `${JSON.stringify(samples, null, 1)}\n`);
