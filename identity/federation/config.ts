/** Settings of federation and of the OpenID Connect documents: who may ask for our bundle, and whose bundles we ask for. */
import { isIP } from 'node:net';
import { z } from 'zod';
import { absolutePath, parsed } from '../../src/base/config-types.ts';
import type { SpiffeId, TrustDomain } from '../../src/model/ids.ts';
import { parseSpiffeId, parseTrustDomain, pathOf } from '../../src/model/spiffe-id.ts';

const MAX_TRUST_DOMAINS = 256;
const MAX_URL_LENGTH = 2048;

const listen = z.strictObject({
  address: z.string().refine((text) => isIP(text) !== 0, 'must be an IPv4 or IPv6 address; correct it'),
  port: z.number().int().min(0).max(65_535),
});

/** PEM: the certificate with its intermediates, and its key, 0600. Read again when they change. */
const certificateFiles = z.strictObject({ certificateFile: absolutePath, keyFile: absolutePath });
export type CertificateFiles = z.infer<typeof certificateFiles>;

const endpointSpiffeId = parsed<SpiffeId>((text) => {
  const id = parseSpiffeId(text);
  if (!id.ok) return id;
  return pathOf(id.value.id) === ''
    ? { ok: false, error: 'a SPIFFE ID without a path is no endpoint’s; give that of the endpoint’s own SVID' }
    : { ok: true, value: id.value.id };
});

/** SPIFFE Federation, sections 5.2.1.1 and 5.2.2.1: https, and no userinfo. */
const httpsUrl = parsed<URL>((text) => {
  const url = URL.canParse(text) && text.length <= MAX_URL_LENGTH ? new URL(text) : undefined;
  if (url === undefined || url.protocol !== 'https:') return { ok: false, error: 'not an https:// URL' };
  if (url.username !== '' || url.password !== '')
    return { ok: false, error: 'a user or password cannot be in the URL' };
  if (url.hash !== '') return { ok: false, error: 'the URL cannot have a fragment' };
  return { ok: true, value: url };
});

/** OpenID Connect Discovery 1.0, section 3: https, without query or fragment. Compared as text, so it is kept as text. */
const issuerUrl = parsed<string>((text) => {
  const url = httpsUrl.safeParse(text);
  if (!url.success) return { ok: false, error: 'not an https:// URL without a user' };
  if (url.data.search !== '' || text.includes('?')) return { ok: false, error: 'an issuer has no query' };
  const plain = text.endsWith('/') ? text.slice(0, -1) : text;
  if (url.data.href !== `${plain}${url.data.pathname === '/' ? '/' : ''}`)
    return { ok: false, error: `write it as ${url.data.href.replace(/\/$/, '')}` };
  return text.endsWith('/') ? { ok: false, error: 'end it without a slash' } : { ok: true, value: text };
});

const foreignTrustDomain = z
  .strictObject({
    trustDomain: parsed<TrustDomain>(parseTrustDomain),
    endpointUrl: httpsUrl,
    profile: z.union([z.literal('https_web'), z.strictObject({ https_spiffe: endpointSpiffeId })]),
    /** PEM. https_web: instead of the authorities of the operating system. */
    caFile: absolutePath.optional(),
  })
  .superRefine(({ profile, caFile }, context) => {
    if (caFile !== undefined && profile !== 'https_web') {
      const message =
        'only https_web has one; https_spiffe is verified with the bundle of the endpoint’s trust domain: remove it';
      context.addIssue({ code: 'custom', path: ['caFile'], message });
    }
  });
export type ForeignTrustDomain = z.infer<typeof foreignTrustDomain>;

export const federationSchema = z
  .strictObject({
    bundleEndpoint: z
      .strictObject({
        listen,
        path: z
          .string()
          .max(MAX_URL_LENGTH)
          .regex(/^\/[A-Za-z0-9._~/-]*$/, 'must be the path of a URL, such as /bundle; begin it with /')
          .default('/'),
        profile: z.union([z.literal('https_spiffe'), z.strictObject({ https_web: certificateFiles })]),
      })
      .optional(),
    trustDomains: z.array(foreignTrustDomain).max(MAX_TRUST_DOMAINS).default([]),
  })
  .prefault({});
export type FederationConfig = z.infer<typeof federationSchema>;

export const oidcSchema = z.strictObject({ issuer: issuerUrl, listen, tls: certificateFiles }).optional();

/** What is wrong with it beside the rest of the configuration. Paths are those within `federation`. */
export function federationProblems(
  { trustDomains }: FederationConfig,
  own: TrustDomain,
): { readonly path: (string | number)[]; readonly message: string }[] {
  return trustDomains.flatMap(({ trustDomain }, i) => {
    const path = ['trustDomains', i, 'trustDomain'];
    if (trustDomain === own) {
      return [{ path, message: `${own} is this server's own: nobody else vouches for it; remove the item` }];
    }
    const first = trustDomains.findIndex((other) => other.trustDomain === trustDomain);
    return first === i ? [] : [{ path, message: `${trustDomain} is already trustDomains[${first}]; list each once` }];
  });
}
