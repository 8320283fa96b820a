/**
 * The authority as earlier versions kept it, in `authority/` (ca.key, ca.crt) beside a ledger that knew only one: its key goes to the key
 * manager, its certificate and all that it signed to the slots, then the directory goes. A crash in between begins again.
 */
import { existsSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CountersignError } from '../src/base/errors.ts';
import { readPrivateFile, readPublicFile, syncDirectory } from '../src/base/private-file.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import { type Certificate, parseCertificate } from '../src/pki/certificate.ts';
import { privateKeyFromPem, publicKeyDer } from '../src/pki/keys.ts';
import { decodePem } from '../src/pki/pem.ts';
import type { KeyManager } from './keys/key-manager.ts';
import { keyTypeOfSpki } from './keys/key-type.ts';
import { madeOf } from './lives.ts';
import type { Slots } from './slots.ts';

/** @param keys files: a token takes no key from outside. @throws CountersignError for one that is open to others, half there, does not fit together or is of another trust domain. */
export async function takeOverAuthority(
  directory: string,
  trustDomain: TrustDomain,
  slots: Slots,
  keys: KeyManager,
  nowMs: number,
): Promise<void> {
  rmSync(join(directory, 'authority.new'), { recursive: true, force: true });
  const place = join(directory, 'authority');
  if (!existsSync(place)) return;
  if ((statSync(place).mode & 0o077) !== 0) {
    throw new CountersignError('permission-denied', `${place}: group or others may enter; run chmod 700 ${place}`);
  }
  const [keyFile, certificateFile] = [join(place, 'ca.key'), join(place, 'ca.crt')];
  const key = inFile(keyFile, readPrivateFile(keyFile), privateKeyFromPem);
  const certificate = inFile(certificateFile, readPublicFile(certificateFile), certificateFromPem);
  if (!publicKeyDer(key).equals(certificate.spki)) {
    throw new CountersignError('bad-input', `${place}: ca.key is not the key of ca.crt; restore both from one backup`);
  }
  checkCertificate(certificateFile, certificate, trustDomain);
  const made = madeOf({ certificate, chain: [], roots: [certificate.der] });
  const keyId = `x509-${made.id.slice(0, 16)}`;
  if (!slots.list().some((slot) => slot.keyId === keyId)) {
    if (slots.list().some((slot) => slot.kind === 'x509')) {
      throw new CountersignError(
        'bad-input',
        `${place}: an authority of an earlier version, but the ledger has others; restore both from one backup`,
      );
    }
    await keys.adopt(keyId, key);
    slots.takeOver(keyId, keyTypeOfSpki(made.publicKey), made, nowMs);
  }
  rmSync(place, { recursive: true, force: true });
  syncDirectory(directory);
}

function checkCertificate(path: string, certificate: Certificate, trustDomain: TrustDomain): void {
  const { spiffeId } = certificate;
  if (!certificate.isCa || spiffeId === undefined || pathOf(spiffeId) !== '') {
    throw new CountersignError('bad-input', `${path}: not the certificate of an authority; restore it from a backup`);
  }
  if (trustDomainOf(spiffeId) !== trustDomain) {
    throw new CountersignError(
      'bad-input',
      `${path}: it is of the trust domain ${trustDomainOf(spiffeId)}, not ${trustDomain}; correct trustDomain in the configuration`,
    );
  }
}

function inFile<T>(path: string, content: Buffer, read: (text: string) => T): T {
  try {
    return read(content.toString('latin1'));
  } catch (thrown) {
    if (!(thrown instanceof CountersignError)) throw thrown;
    throw new CountersignError(thrown.code, `${path}: ${thrown.message}; restore it from a backup`);
  }
}

function certificateFromPem(text: string): Certificate {
  const [bytes, ...more] = decodePem(text, 'CERTIFICATE');
  const parsed = parseCertificate(bytes!);
  if (!parsed.ok || more.length > 0) throw new CountersignError('bad-input', 'not one certificate');
  return parsed.value;
}
