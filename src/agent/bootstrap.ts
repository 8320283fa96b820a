/** What an agent must have before it may talk to anybody: the trust bundle, and once a join token. */
import { createPrivateKey, type KeyObject } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { native } from '../../native/index.ts';
import { fieldError } from '../base/config-file.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { readPrivateFile, readPublicFile } from '../base/private-file.ts';
import { decodePem } from '../pki/pem.ts';
import { loadPolicies } from '../policy/load.ts';
import type { AgentConfig } from './config.ts';

/** @throws CountersignError bad-input that names the file */
export function readBootstrapBundle(config: AgentConfig): readonly Buffer[] {
  const { bundleFile } = config.server;
  let text: string;
  try {
    text = readFileSync(bundleFile, 'utf8');
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `${bundleFile} cannot be read (${(cause as NodeJS.ErrnoException).code}); copy the trust bundle there: countersign bundle show`,
      { cause },
    );
  }
  const certificates = decodePem(text, 'CERTIFICATE');
  if (certificates.length === 0)
    throw new CountersignError(
      'bad-input',
      `${bundleFile} holds no PEM certificate; copy the trust bundle there: countersign bundle show`,
    );
  return certificates;
}

/**
 * What the settings name must be there before anything is touched.
 * @throws CountersignError bad-input with file, line and field; of a policy with those of the policy's file
 */
export function checkNamed(path: string, config: AgentConfig): void {
  const at = (field: readonly string[], look: () => void) => {
    try {
      look();
    } catch (thrown) {
      throw fieldError(path, field, asError(thrown).message);
    }
  };
  at(['server', 'bundleFile'], () => readBootstrapBundle(config));
  at(['node', 'underlay'], () => underlayIndex(config));
  const { directory, l7 } = config.policies;
  if (!existsSync(directory)) {
    throw fieldError(path, ['policies', 'directory'], `${directory} does not exist; create it or correct the path`);
  }
  // An agent does not start on policies it cannot read.
  loadPolicies(directory, { l7 });
}

/** @throws CountersignError bad-input */
export function underlayIndex(config: AgentConfig): number {
  try {
    return native().ifIndex(config.node.underlay);
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `there is no interface ${config.node.underlay} in this network namespace; name the one towards the other nodes`,
      { cause },
    );
  }
}

/** undefined: there is none, which is right once the node is attested. */
export async function readJoinToken(config: AgentConfig): Promise<string | undefined> {
  const { joinTokenFile } = config.server;
  if (joinTokenFile === undefined) return undefined;
  try {
    if ((statSync(joinTokenFile).mode & 0o077) !== 0) {
      throw new CountersignError(
        'permission-denied',
        `server.joinTokenFile: others may read ${joinTokenFile}; chmod 600 it, and make a new token`,
      );
    }
    return readFileSync(joinTokenFile, 'utf8').trim();
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw thrown;
  }
}

/** What the attestor x509pop shows: the chain, leaf first, and its key. @throws CountersignError with the path and what to do */
export function readNodeCertificate(config: AgentConfig): { chain: Buffer[]; privateKey: KeyObject } {
  const { certificateFile = '', keyFile = '' } = config.server.attestor;
  const chain = decodePem(readPublicFile(certificateFile).toString('utf8'), 'CERTIFICATE');
  const key = readPrivateFile(keyFile).toString('utf8');
  try {
    return { chain, privateKey: createPrivateKey(key) };
  } catch {
    // what OpenSSL says of it may hold a part of it
    const message = `server.attestor.keyFile: ${keyFile} holds no private key in PEM; write it as PKCS#8, without a passphrase`;
    throw new CountersignError('bad-input', message);
  }
}
