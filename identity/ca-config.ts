/** The part of the identity server's settings that says where the authority's keys are and who signs its certificate. */
import { z } from 'zod';
import { KEY_TYPES } from '../ca/keys/key-type.ts';
import { absolutePath } from '../src/base/config-types.ts';

/** A path within Vault's API: never a way out of the place that it stands in. */
const vaultPath = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9_-]*(\/[A-Za-z0-9][A-Za-z0-9_-]*)*$/,
    'must be letters, digits, - and _, with / between; correct it',
  )
  .max(128);

export const keyType = z.enum(KEY_TYPES).default('ec-p256');

const secretFiles = { passphraseFile: absolutePath.optional(), keyFile: absolutePath.optional() };
const former = z
  .strictObject(secretFiles)
  .refine(
    ({ passphraseFile, keyFile }) => (passphraseFile === undefined) !== (keyFile === undefined),
    'has one of passphraseFile and keyFile; give the one that keys were encrypted with before',
  )
  .optional();

export const caKeys = z
  .discriminatedUnion('type', [
    z.strictObject({ type: z.literal('memory') }),
    z
      .strictObject({ type: z.literal('disk'), ...secretFiles, former })
      .refine(
        ({ passphraseFile, keyFile }) => passphraseFile === undefined || keyFile === undefined,
        'has both passphraseFile and keyFile; give one',
      )
      .refine(
        (keys) => keys.former === undefined || (keys.passphraseFile ?? keys.keyFile) !== undefined,
        'has a former secret and no present one; give passphraseFile or keyFile',
      ),
    z.strictObject({
      type: z.literal('pkcs11'),
      module: absolutePath,
      token: z.string().min(1).max(32),
      pinFile: absolutePath,
      former,
    }),
  ])
  .prefault({ type: 'disk' });

const vaultAuth = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('token'), tokenFile: absolutePath }),
  z.strictObject({
    type: z.literal('approle'),
    mount: vaultPath.default('approle'),
    roleIdFile: absolutePath,
    secretIdFile: absolutePath,
  }),
  z.strictObject({
    type: z.literal('kubernetes'),
    mount: vaultPath.default('kubernetes'),
    role: z.string().min(1).max(256),
    tokenFile: absolutePath.default('/var/run/secrets/kubernetes.io/serviceaccount/token'),
  }),
]);

const vaultAddress = z.string().refine((text) => {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  return (
    url?.protocol === 'https:' && url.username === '' && url.pathname === '/' && url.search === '' && url.hash === ''
  );
}, 'must be https://HOST:PORT and nothing more; correct it');

const hostAndPort = z
  .string()
  .regex(
    /^([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):\d{1,5}$/,
    'must be HOST:PORT or [IPv6]:PORT, of admin.listen there; correct it',
  );

export const caUpstream = z
  .discriminatedUnion('type', [
    z.strictObject({
      type: z.literal('countersign'),
      addresses: z.array(hostAndPort).min(1).max(8),
      svid: absolutePath,
      bundleFile: absolutePath.optional(),
      timeoutSeconds: z.number().int().min(1).max(60).default(10),
    }),
    z.strictObject({
      type: z.literal('disk'),
      certFile: absolutePath,
      keyFile: absolutePath,
      bundleFile: absolutePath.optional(),
    }),
    z.strictObject({
      type: z.literal('vault'),
      address: vaultAddress,
      caFile: absolutePath.optional(),
      namespace: z
        .string()
        .regex(/^[\x21-\x7e]{1,256}$/, 'must be one word; correct it')
        .optional(),
      mount: vaultPath.default('pki'),
      issuer: vaultPath.optional(),
      auth: vaultAuth,
      bundleFile: absolutePath.optional(),
      timeoutSeconds: z.number().int().min(1).max(60).default(10),
    }),
    z
      .looseObject({ type: z.literal('cert-manager') })
      .refine(
        () => false,
        'cert-manager is asked through Kubernetes, which is not there yet; use disk, vault or countersign',
      )
      .transform(() => z.NEVER),
  ])
  .optional();
