/**
 * A caller's SVIDs and bundles as Envoy's secrets, under the names that SPIRE gives them: `default` for the first SVID, `ROOTCA` for
 * the own bundle, `ALL` for all bundles, and SPIFFE IDs of SVIDs and of trust domains. Pure.
 */
import type { DataSource } from '../../proto/gen/envoy/config/core/v3/base.ts';
import { Secret } from '../../proto/gen/envoy/extensions/transport_sockets/tls/v3/secret.ts';
import { SPIFFECertValidatorConfig } from '../../proto/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.ts';
import type { SemanticVersion } from '../../proto/gen/envoy/type/v3/semantic_version.ts';
import type { Any } from '../../proto/gen/google/protobuf/any.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import { trustDomainSpiffeId } from '../model/spiffe-id.ts';
import { privateKeyPem } from '../pki/keys.ts';
import { encodePem } from '../pki/pem.ts';
import type { IdentitySnapshot } from './feed.ts';
import { bundlesFor, REFUSALS, type Refusal, STATUS, validSvidsOf } from './responses.ts';

const TYPE_PREFIX = 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.';
export const SECRET_TYPE = `${TYPE_PREFIX}Secret`;
const DEFAULT_SVID = 'default';
const OWN_BUNDLE = 'ROOTCA';
const ALL_BUNDLES = 'ALL';
/** Names quoted in a refusal. */
const MAX_QUOTED = 4;

export interface Secrets {
  readonly resources: Any[];
  /** Of the SVIDs among them. */
  readonly spiffeIds: string[];
}

/**
 * @param names none: all that the caller may have, by SPIFFE IDs
 * @param envoy its version, if it said it: from 1.18 on it has a validator that keeps trust domains apart
 */
export function composeSecrets(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
  nowMs: number,
  names: readonly string[],
  envoy: SemanticVersion | undefined,
): Result<Secrets, Refusal> {
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const { own, federated } = bundlesFor(snapshot, entries);
  const bundles = [...own, ...federated];
  const wanted = new Set(names);
  const left = new Set(names);
  const resources: Any[] = [];
  const takes = (name: string) => {
    left.delete(name);
    return wanted.has(name);
  };
  const byTrustDomain = envoy !== undefined && hasSpiffeValidator(envoy);
  const one = byTrustDomain
    ? (name: string, bundle: TrustBundle) => trustDomainsSecret(name, [bundle])
    : (name: string, bundle: TrustBundle) => authoritiesSecret(name, bundle);

  for (const bundle of bundles) {
    const id = trustDomainSpiffeId(bundle.trustDomain);
    if (takes(id) || names.length === 0) resources.push(one(id, bundle));
  }
  if (wanted.has(OWN_BUNDLE) || wanted.has(ALL_BUNDLES)) {
    if (own[0] === undefined) return err(REFUSALS.noBundle);
    if (takes(OWN_BUNDLE)) resources.push(one(OWN_BUNDLE, own[0]));
    if (takes(ALL_BUNDLES)) {
      if (envoy !== undefined && !byTrustDomain) return refuse(`${ALL_BUNDLES} needs Envoy 1.18 or later`);
      resources.push(trustDomainsSecret(ALL_BUNDLES, bundles));
    }
  }

  const spiffeIds: string[] = [];
  const ids = new Set<string>(entries.map(({ spiffeId }) => spiffeId));
  const askedSvid = names.length === 0 || names.some((name) => name === DEFAULT_SVID || ids.has(name));
  const svids = askedSvid ? validSvidsOf(snapshot, entries, nowMs) : ok([]);
  if (!svids.ok) return svids;
  const add = (name: string, svid: Svid) => {
    resources.push(svidSecret(name, svid));
    spiffeIds.push(svid.spiffeId);
  };
  const [first] = svids.value;
  if (first !== undefined && takes(DEFAULT_SVID)) add(DEFAULT_SVID, first.svid);
  const given = new Set<string>();
  for (const { svid } of svids.value) {
    if (given.has(svid.spiffeId)) continue; // the name is taken by an entry before it
    given.add(svid.spiffeId);
    if (takes(svid.spiffeId) || names.length === 0) add(svid.spiffeId, svid);
  }
  if (left.size === 0) return ok({ resources, spiffeIds });
  if ([...left].some((name) => ids.has(name))) return err(REFUSALS.notIssued);
  const quoted = [...left].slice(0, MAX_QUOTED).map((name) => JSON.stringify(name.slice(0, 256)));
  return refuse(`workload is not authorized for the requested identities ${quoted.join(', ')}`);
}

function refuse(message: string): Result<never, Refusal> {
  return err({ code: STATUS.invalidArgument, message, reason: undefined });
}

function hasSpiffeValidator({ majorNumber, minorNumber }: SemanticVersion): boolean {
  return majorNumber > 1 || (majorNumber === 1 && minorNumber >= 18);
}

function svidSecret(name: string, { chain, privateKey }: Svid): Any {
  const value = { certificateChain: inline(pemOf(chain)), privateKey: inline(privateKeyPem(privateKey)) };
  return secret({ name, type: { $case: 'tlsCertificate', value } });
}

/** Whoever these authorities signed is accepted: the trust domain in the SPIFFE ID is for Envoy's configuration to compare. */
function authoritiesSecret(name: string, { authorities }: TrustBundle): Any {
  const value = { trustedCa: inline(pemOf(authorities)), customValidatorConfig: undefined };
  return secret({ name, type: { $case: 'validationContext', value } });
}

/** Each bundle vouches for its own trust domain only. */
function trustDomainsSecret(name: string, bundles: readonly TrustBundle[]): Any {
  const trustDomains = bundles
    .map(({ trustDomain, authorities }) => ({ name: trustDomain as string, trustBundle: inline(pemOf(authorities)) }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const config = Buffer.from(SPIFFECertValidatorConfig.encode({ trustDomains }).finish());
  const customValidatorConfig = {
    name: 'envoy.tls.cert_validator.spiffe',
    typedConfig: { typeUrl: `${TYPE_PREFIX}SPIFFECertValidatorConfig`, value: config },
  };
  return secret({
    name,
    type: { $case: 'validationContext', value: { trustedCa: undefined, customValidatorConfig } },
  });
}

function secret(message: Secret): Any {
  return { typeUrl: SECRET_TYPE, value: Buffer.from(Secret.encode(message).finish()) };
}

function inline(pem: string): DataSource {
  return { specifier: { $case: 'inlineBytes', value: Buffer.from(pem) } };
}

function pemOf(certificates: readonly Buffer[]): string {
  return certificates.map((der) => encodePem('CERTIFICATE', der)).join('');
}
