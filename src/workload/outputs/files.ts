/** What a workload's programs read of its identity, as files: PEM, a JVM's keystores, a JWT-SVID. */
import { privateKeyPem } from '../../pki/keys.ts';
import { encodePem } from '../../pki/pem.ts';
import type { FetchedJwtSvid, FetchedSvid } from '../client.ts';
import type { OutputFile } from './directory.ts';

/** svid.pem (leaf first), key.pem, bundle.pem; crl.pem and federated/<trust domain>.pem where there are such. */
export function pemFiles(svid: FetchedSvid): OutputFile[] {
  const file = (name: string, label: string, ders: readonly Buffer[]): OutputFile => ({
    name,
    content: ders.map((der) => encodePem(label, der)).join(''),
    mode: 0o644,
  });
  return [
    { name: 'key.pem', content: privateKeyPem(svid.privateKey), mode: 0o600 },
    file('svid.pem', 'CERTIFICATE', svid.chain),
    file('bundle.pem', 'CERTIFICATE', svid.bundle),
    ...(svid.crls.length === 0 ? [] : [file('crl.pem', 'X509 CRL', svid.crls)]),
    ...[...svid.federatedBundles].map(([domain, bundle]) => file(`federated/${domain}.pem`, 'CERTIFICATE', bundle)),
  ];
}

/** keystore.p12 (key and chain) and truststore.p12 (the authorities of the own trust domain), both under one password. */
export async function keystoreFiles(svid: FetchedSvid, password: string): Promise<OutputFile[]> {
  const { keystore, truststore } = await import('./keystore.ts');
  return [
    { name: 'keystore.p12', content: keystore(svid, password), mode: 0o600 },
    // not secret, but sealed with the password: others could try guesses on it
    { name: 'truststore.p12', content: truststore(svid.bundle, password), mode: 0o600 },
  ];
}

export function jwtFile(jwt: FetchedJwtSvid): OutputFile {
  return { name: 'jwt_svid.token', content: jwt.token, mode: 0o600 };
}
