/**
 * OpenID Connect Discovery 1.0 for JWT-SVIDs: who trusts OpenID Connect issuers (cloud providers, API gateways) can verify them without
 * knowing SPIFFE. There is no login and no token endpoint: only the keys are published.
 */
import type { TrustBundle } from '../../src/model/identity.ts';
import { encodeJwks } from '../../src/pki/spiffe-bundle.ts';

const KEYS_PATH = '/keys';

/** The documents by path. @param issuer https URL without a slash at its end */
export function oidcDocuments(
  issuer: string,
  bundle: () => Promise<TrustBundle>,
): Record<string, () => Promise<string>> {
  const base = new URL(issuer).pathname.replace(/\/$/, '');
  return {
    // section 4: the issuer's path comes before
    [`${base}/.well-known/openid-configuration`]: async () =>
      JSON.stringify({
        issuer,
        jwks_uri: `${issuer}${KEYS_PATH}`,
        response_types_supported: ['id_token'],
        subject_types_supported: ['public'],
        id_token_signing_alg_values_supported: algorithms(encodeJwks(await bundle())),
      }),
    [`${base}${KEYS_PATH}`]: async () => encodeJwks(await bundle()),
  };
}

function algorithms(jwks: string): string[] {
  const { keys } = JSON.parse(jwks) as { keys: { alg: string }[] };
  return [...new Set(keys.map(({ alg }) => alg))];
}
