/** Which SVID proves which identity of this node: the identity server's, unless the configuration provides one of its own. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { IdentityTable, Svid, SvidSource } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { parseCertificate } from '../pki/certificate.ts';
import type { EndpointConfig } from './config.ts';

/**
 * A provided SVID is read each time it is needed, so that its owner can renew it, and is shown as it is: whether it proves
 * anything is for the peer to judge.
 */
export function withProvidedSvids(
  own: SvidSource,
  endpoints: readonly EndpointConfig[],
  identities: IdentityTable,
  log: Logger,
): SvidSource {
  const provided = endpoints.filter((e) => e.svid !== undefined);
  return {
    svidOf(identity: SecurityIdentity): Result<Svid, ReasonCode> {
      const spiffeId = identities.byIdentity(identity)?.spiffeId;
      const endpoint = spiffeId === undefined ? undefined : provided.find((e) => e.spiffeId === spiffeId);
      if (endpoint?.svid === undefined) return own.svidOf(identity);
      try {
        return readSvid(endpoint.svid);
      } catch (thrown) {
        log.warn(
          { endpoint: endpoint.name, code: (thrown as NodeJS.ErrnoException).code ?? 'unreadable' },
          'the provided SVID cannot be read',
        );
        return err('AUTH_NO_SVID');
      }
    },
  };
}

function readSvid(files: { certificateFile: string; keyFile: string }): Result<Svid, ReasonCode> {
  const pem = readFileSync(files.certificateFile, 'utf8');
  const chain = pem
    .split(/(?<=-----END CERTIFICATE-----)\s*/)
    .filter((block) => block.includes('BEGIN CERTIFICATE'))
    .map((block) => Buffer.from(new X509Certificate(block).raw));
  const leaf = chain[0] === undefined ? undefined : parseCertificate(chain[0]);
  if (leaf === undefined || !leaf.ok || leaf.value.spiffeId === undefined) return err('AUTH_NO_SVID');
  const privateKey = createPrivateKey(readFileSync(files.keyFile));
  return ok({ spiffeId: leaf.value.spiffeId, chain, privateKey, notAfterMs: leaf.value.notAfterMs });
}
