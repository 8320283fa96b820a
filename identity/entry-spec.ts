/** What an administrator writes of a registration entry, in entries.yaml or through the admin API, and every rule it must keep. */
import { z } from 'zod';
import { parsed } from '../src/base/config-types.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { parseNodeName, parseSpiffeId, parseTrustDomain, pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';

/** As in Kubernetes: what policies select by must be writable there. */
const labelKey = z
  .string()
  .regex(
    /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/,
    'must be a label key as in Kubernetes; correct it',
  );
const labelValue = z
  .string()
  .regex(/^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/, 'must be a label value as in Kubernetes; correct it');
const dnsName = z
  .string()
  .max(253)
  .regex(
    /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$/,
    'must be a lower-case DNS name; correct it',
  );

const PROTOCOLS = { TCP: 6, UDP: 17, SCTP: 132 } as const;

/** As a container's ports in Kubernetes; policies may say the name where they would say the number. */
const namedPort = z
  .strictObject({
    // RFC 6335, section 5.1: at least one letter, no two hyphens in a row.
    name: z
      .string()
      .regex(
        /^(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$/,
        'must be a service name: at most 15 lower-case letters, digits and single hyphens; correct it',
      ),
    protocol: z.enum(['TCP', 'UDP', 'SCTP']).default('TCP'),
    port: z.number().int().min(1).max(65_535),
  })
  .transform(({ name, protocol, port }) => ({ name, protocol: PROTOCOLS[protocol], port }));

export const entrySchema = z.strictObject({
  id: z
    .string()
    .regex(/^[A-Za-z0-9][-A-Za-z0-9_.]{0,127}$/, 'must be 1 to 128 letters, digits, dashes, dots; correct it'),
  spiffeId: parsed<SpiffeId>((text) => {
    const result = parseSpiffeId(text);
    return result.ok ? { ok: true, value: result.value.id } : result;
  }),
  /** The node on which the workload runs. */
  node: parsed<NodeName>(parseNodeName),
  selectors: z
    .array(
      z
        .string()
        .max(512)
        .regex(/^[a-z0-9_-]+:[\x21-\x7e]+$/, 'must be "type:value", such as unix:uid:1001; correct it'),
    )
    .min(1, 'must name at least one selector; without one every process on the node would match')
    .max(32),
  labels: z.record(labelKey, labelValue).default({}),
  ports: z
    .array(namedPort)
    .max(64)
    .refine(
      (ports) => new Set(ports.map(({ name, protocol }) => `${protocol}/${name}`)).size === ports.length,
      'has two ports of the same name and protocol; rename one',
    )
    .default([])
    .transform((ports) =>
      ports.toSorted((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.protocol - b.protocol)),
    ),
  hint: z.string().max(256).default(''),
  ttlSeconds: z.number().int().min(60).max(86_400).optional(),
  jwtTtlSeconds: z.number().int().min(30).max(3600).optional(),
  dnsNames: z.array(dnsName).max(16).default([]),
  /** Trust domains whose bundles its workload gets besides its own. */
  federatesWith: z
    .array(parsed<TrustDomain>(parseTrustDomain))
    .max(64)
    .default([])
    .transform((names) => [...new Set(names)].sort()),
  /** Its SVIDs have the role admin at the server's API over TLS. */
  admin: z.boolean().default(false),
  /** Its SVIDs may have an authority signed, with which a server below this one issues for the same trust domain. */
  downstream: z.boolean().default(false),
});
export type EntrySpec = z.infer<typeof entrySchema>;

export const entriesFileSchema = z.strictObject({
  apiVersion: z.literal('countersign.dev/v1alpha1'),
  kind: z.literal('RegistrationEntries'),
  entries: z.array(entrySchema).max(100_000).default([]),
});

/** Paths under which the trust domain's own parts are named: an entry there could be taken for one of them. */
const reserved = ['/node', '/countersign'];

/** Which of them a path is, or is under. */
export function reservedPathOf(path: string): string | undefined {
  return reserved.find((prefix) => path === prefix || path.startsWith(`${prefix}/`));
}

/** The rules that need to know the trust domain and its nodes. A sentence with its fix, or undefined. */
export function problemOf(
  spec: EntrySpec,
  trustDomain: TrustDomain,
  isNode: (name: string) => boolean,
): string | undefined {
  if (trustDomainOf(spec.spiffeId) !== trustDomain) {
    return `spiffeId: ${spec.spiffeId} is not of the trust domain ${trustDomain}; correct it`;
  }
  const path = pathOf(spec.spiffeId);
  if (path === '') return 'spiffeId: a workload needs a path; add one';
  const taken = reservedPathOf(path);
  if (taken !== undefined) return `spiffeId: the path ${taken} is kept for nodes and the server; choose another`;
  if (spec.federatesWith.includes(trustDomain)) {
    return `federatesWith: ${trustDomain} is the trust domain itself, whose bundle every workload gets; leave it out`;
  }
  if (!isNode(spec.node)) return `node: ${spec.node} is not a node of the server's configuration; list it there first`;
  return undefined;
}
