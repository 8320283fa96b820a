/** An SVID in files, as `countersign svid fetch` and `svid watch` write them: svid.pem, key.pem and bundle.pem of one moment. */
import { existsSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { CountersignError } from '../base/errors.ts';
import { readPrivateFile, readPublicFile } from '../base/private-file.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { parseCertificate } from './certificate.ts';
import { privateKeyFromPem } from './keys.ts';
import { decodePem } from './pem.ts';

/** @param named the directory itself. @param setting that names it, for errors. @throws CountersignError */
export function readSvidDirectory(named: string, setting: string): { svid: Svid; bundle: TrustBundle } {
  if (!existsSync(named)) {
    throw new CountersignError(
      'bad-input',
      `${setting} ${named}: not there; write one with: countersign svid fetch --write`,
    );
  }
  // `svid fetch` and `svid watch` keep what belongs together behind one link: resolved once, key and certificate fit
  const current = join(named, 'current');
  const dir = realpathSync(existsSync(current) ? current : named);
  const certificates = (name: string) =>
    inFile(join(dir, name), () => decodePem(readPublicFile(join(dir, name)).toString('utf8'), 'CERTIFICATE'));
  const chain = certificates('svid.pem');
  const leaf = parseCertificate(chain[0]!);
  if (!leaf.ok || leaf.value.spiffeId === undefined) {
    throw new CountersignError('bad-input', `${join(dir, 'svid.pem')}: its first certificate is no X.509-SVID`);
  }
  const { spiffeId, notAfterMs } = leaf.value;
  const keyFile = join(dir, 'key.pem');
  const keyText = readPrivateFile(keyFile).toString('utf8');
  const privateKey = inFile(keyFile, () => privateKeyFromPem(keyText));
  const bundle = { trustDomain: trustDomainOf(spiffeId), authorities: certificates('bundle.pem') };
  return { svid: { spiffeId, chain, privateKey, notAfterMs }, bundle };
}

/** Says of which file it is. */
function inFile<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (thrown) {
    if (!(thrown instanceof CountersignError) || thrown.message.includes(path)) throw thrown;
    throw new CountersignError(
      thrown.code,
      `${path}: ${thrown.message}; write it with: countersign svid fetch --write`,
    );
  }
}
