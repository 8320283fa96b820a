/** What an agent must have before it may talk to anybody: the trust bundle, and once a join token. */
import { readFileSync, statSync } from 'node:fs';
import { CountersignError } from '../base/errors.ts';
import { decodePem } from '../pki/pem.ts';
import type { AgentConfig } from './config.ts';

/** @throws CountersignError bad-input that names the field */
export function readBootstrapBundle(config: AgentConfig): readonly Buffer[] {
  const { bundleFile } = config.server;
  let text: string;
  try {
    text = readFileSync(bundleFile, 'utf8');
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `server.bundleFile: ${bundleFile} cannot be read (${(cause as NodeJS.ErrnoException).code}); copy the trust bundle there: countersign bundle show`,
      { cause },
    );
  }
  const certificates = decodePem(text, 'CERTIFICATE');
  if (certificates.length === 0)
    throw new CountersignError(
      'bad-input',
      `server.bundleFile: ${bundleFile} holds no PEM certificate; copy the trust bundle there: countersign bundle show`,
    );
  return certificates;
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
