/** The identity server's settings: one schema, checked whole before anything starts. */
import { isIP } from 'node:net';
import { z } from 'zod';
import { absolutePath, logLevel, parsed } from '../src/base/config-types.ts';
import { type Prefix, parsePrefix } from '../src/model/address.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { MAX_NODES_PER_ADDRESS, PrefixIndex } from '../src/model/prefix-index.ts';
import { parseNodeName, parseSpiffeId, parseTrustDomain, pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import { caKeys, caUpstream, keyType } from './ca-config.ts';
import { reservedPathOf } from './entry-spec.ts';
import { datastoreSchema } from './etcd/config.ts';
import { federationProblems, federationSchema, oidcSchema } from './federation/config.ts';

const prefix = parsed<Prefix>((text) => {
  const value = parsePrefix(text);
  return value === undefined
    ? { ok: false, error: `"${text}" is not a prefix with zero host bits, such as 10.0.1.0/24 or 2001:db8:1::/64` }
    : { ok: true, value };
});

const units = { s: 1, m: 60, h: 3600, d: 86_400 } as const;

/** "90s", "10m", "1h", "7d" to seconds, within bounds. */
function ttl(fallback: string, minSeconds: number, maxSeconds: number, bounds: string) {
  return parsed<number>((text) => {
    const match = /^(\d{1,9})([smhd])$/.exec(text);
    if (match === null) return { ok: false, error: `"${text}" is not a duration such as 90s, 10m, 1h or 7d` };
    const seconds = Number(match[1]) * units[match[2] as keyof typeof units];
    return seconds >= minSeconds && seconds <= maxSeconds
      ? { ok: true, value: seconds }
      : { ok: false, error: `must be from ${bounds}` };
  }).prefault(fallback);
}

const ipAddress = z.string().refine((text) => isIP(text) !== 0, 'must be an IPv4 or IPv6 address; correct it');

const attestorsSchema = z
  .strictObject({
    /** One-time tokens: countersign token create. */
    join_token: z.strictObject({ enabled: z.boolean().default(true) }).prefault({}),
    x509pop: z
      .strictObject({
        caFile: absolutePath,
        nodeName: z.enum(['common-name', 'dns-name']).default('common-name'),
        domain: z
          .string()
          .regex(
            /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/,
            'must be a lower-case DNS name without a leading dot; correct it',
          )
          .optional(),
        reattest: z.enum(['allow', 'never']).default('allow'),
      })
      .optional(),
    k8s_psat: z.undefined('is not supported yet; use join_token or x509pop').optional(),
  })
  .prefault({});

const adminSchema = z
  .strictObject({
    listen: z.strictObject({ address: ipAddress, port: z.number().int().min(0).max(65_535) }).optional(),
    roles: z
      .array(
        z.strictObject({
          spiffeId: parsed<SpiffeId>((text) => {
            const result = parseSpiffeId(text);
            return result.ok ? { ok: true, value: result.value.id } : result;
          }),
          role: z.enum(['viewer', 'registrar', 'admin']),
        }),
      )
      .max(1000)
      .default([]),
  })
  .prefault({});

export const serverConfigSchema = z
  .strictObject({
    apiVersion: z.literal('countersign.dev/v1alpha1'),
    kind: z.literal('ServerConfig'),
    trustDomain: parsed<TrustDomain>(parseTrustDomain),
    /** CA keys, database and bundle.pem. Made if it does not exist. */
    dataDir: absolutePath,
    listen: z.strictObject({
      address: ipAddress,
      port: z.number().int().min(0).max(65_535).default(8443),
    }),
    adminSocket: absolutePath.default('/run/countersign/server-admin.sock'),
    ca: z
      .strictObject({
        workloadTtl: ttl('1h', 60, 86_400, '60s to 24h'),
        nodeTtl: ttl('1h', 60, 7 * 86_400, '60s to 7d'),
        serverTtl: ttl('24h', 120, 7 * 86_400, '2m to 7d'),
        jwtTtl: ttl('5m', 10, 3600, '10s to 1h'),
        /** Of authorities of servers below, at most. */
        downstreamTtl: ttl('24h', 600, 30 * 86_400, '10m to 30d'),
        /** Lives of signing keys that are made from now on. */
        rootTtl: ttl('365d', 60, 7300 * 86_400, '60s to 7300d'),
        jwtKeyTtl: ttl('7d', 60, 365 * 86_400, '60s to 365d'),
        /** Of authorities that are made from now on. */
        keyType,
        jwtKeyType: keyType,
        /** Where the authority's private keys are. */
        keys: caKeys,
        /** Who signs the authority's certificate; left out: it signs itself. */
        upstream: caUpstream,
        /** Begin with a new authority when the key of the active one is gone. */
        replaceLostKeys: z.boolean().optional(),
      })
      .prefault({}),
    datastore: datastoreSchema,
    /** Registration entries, read anew when the file changes. */
    entriesFile: absolutePath.optional(),
    /** Every node that may join, and the addresses it may vouch for. */
    nodes: z
      .array(z.strictObject({ name: parsed<NodeName>(parseNodeName), prefixes: z.array(prefix).max(64).default([]) }))
      .max(10_000)
      .default([]),
    limits: z
      .strictObject({
        connections: z.number().int().min(1).max(100_000).default(10_000),
        /** Connections that have not ended their TLS handshake. */
        handshakes: z.number().int().min(1).max(10_000).default(256),
        /** SVIDs a second for each node, see node-share.ts. */
        svidsPerNode: z.number().int().min(1).max(1_000_000).default(50),
      })
      .prefault({}),
    /** How nodes may prove which one they are. */
    attestors: attestorsSchema,
    /** The administrator's API over TLS, besides the socket. */
    admin: adminSchema,
    federation: federationSchema,
    oidc: oidcSchema,
    audit: z.strictObject({ dir: absolutePath }),
    logLevel,
  })
  .superRefine((config, context) => {
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message });
    if (config.datastore.type === 'etcd') {
      const { keys } = config.ca;
      const isShared =
        keys.type === 'pkcs11' ||
        (keys.type === 'disk' && (keys.passphraseFile !== undefined || keys.keyFile !== undefined));
      if (!isShared) {
        const message =
          'servers that share etcd need keys that each of them can use: set passphraseFile or keyFile, the same on all, or use pkcs11';
        issue(['ca', 'keys'], message);
      }
    }
    for (const { path, message } of federationProblems(config.federation, config.trustDomain)) {
      issue(['federation', ...path], message);
    }
    config.admin.roles.forEach(({ spiffeId }, i) => {
      const path = ['admin', 'roles', i, 'spiffeId'];
      const reserved = reservedPathOf(pathOf(spiffeId));
      if (trustDomainOf(spiffeId) !== config.trustDomain || pathOf(spiffeId) === '') {
        issue(path, `${spiffeId} is no SVID of ${config.trustDomain}; only those may call`);
      } else if (reserved !== undefined) {
        // who may make join tokens could become it, and eviction does not revoke a node's SVID
        issue(path, `the path ${reserved} is kept for nodes and the server, which have no role; name a workload`);
      }
    });
    const names = new Map<string, number>();
    const covering = new PrefixIndex<string>((a, b) => (a < b ? -1 : 1));
    config.nodes.forEach((node, i) => {
      const first = names.get(node.name);
      if (first !== undefined)
        issue(['nodes', i, 'name'], `${node.name} is already that of nodes[${first}]; list each node once`);
      names.set(node.name, first ?? i);
      for (const candidate of node.prefixes) covering.add(candidate, node.name);
    });
    // Nodes may share prefixes, so that a workload can take its address along. All prefixes that cover an address contain the
    // longest of them: looking at each listed prefix looks at every address.
    config.nodes.forEach((node, i) => {
      node.prefixes.forEach((candidate, j) => {
        const others = new Set(covering.containing(candidate));
        if (others.size > MAX_NODES_PER_ADDRESS) {
          const message = `${others.size} nodes cover it, such as ${[...others].slice(0, 3).join(', ')}; at most ${MAX_NODES_PER_ADDRESS} may cover one address: give fewer nodes this prefix or those that contain it`;
          issue(['nodes', i, 'prefixes', j], message);
        }
      });
    });
  });
export type ServerConfig = z.infer<typeof serverConfigSchema>;
