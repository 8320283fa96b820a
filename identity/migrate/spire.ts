/**
 * SPIRE's registration entries as ours. Input is what `spire-server entry show -output json` prints (spire.api.types.Entry as JSON).
 * An entry either becomes one that means the same, or is left out with the reason: nothing is dropped without a word.
 */
import { z } from 'zod';
import { CountersignError } from '../../src/base/errors.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { type EntrySpec, entrySchema, problemOf } from '../entry-spec.ts';

/** Kinds of selectors that an agent of ours finds out by itself. */
const ATTESTED = new Set(['unix', 'systemd', 'docker', 'container']);
const TTL = { ttlSeconds: [60, 86_400], jwtTtlSeconds: [30, 3600] } as const;

const id = z.object({ trust_domain: z.string(), path: z.string() });
/** Numbers of 64 bits are text in protobuf's JSON. */
const int64 = z.union([z.string(), z.number()]).transform(Number);

/** Fields of a later SPIRE are not known here, nor what they mean. */
const spireEntry = z.strictObject({
  id: z.string(),
  spiffe_id: id,
  parent_id: id,
  selectors: z.array(z.object({ type: z.string(), value: z.string() })),
  x509_svid_ttl: z.number().default(0),
  jwt_svid_ttl: z.number().default(0),
  federates_with: z.array(z.string()).default([]),
  hint: z.string().default(''),
  admin: z.boolean().default(false),
  downstream: z.boolean().default(false),
  dns_names: z.array(z.string()).default([]),
  expires_at: int64.default(0),
  store_svid: z.boolean().default(false),
  // They say of a record when it was made, not what it means.
  revision_number: int64.default(0),
  created_at: int64.default(0),
});
type SpireEntry = z.infer<typeof spireEntry>;

const spireEntries = z.object({
  entries: z.array(z.unknown()).max(100_000),
  next_page_token: z.literal('').optional(),
});

export interface LeftOut {
  /** SPIRE's id and SPIFFE ID, as far as they could be read. */
  readonly id: string;
  readonly spiffeId: string;
  readonly why: string;
}

export interface Migrated {
  readonly entries: readonly EntrySpec[];
  readonly leftOut: readonly LeftOut[];
  /** What is another than it was, by entry. */
  readonly changed: readonly { readonly id: string; readonly what: string }[];
}

/**
 * @param text JSON
 * @param nodesOf nodes of ours that stand for a parent of SPIRE's: an agent's SPIFFE ID, or that of a node entry
 * @throws CountersignError bad-input: it is not what SPIRE prints
 */
export function migrateSpireEntries(
  text: string,
  trustDomain: TrustDomain,
  nodesOf: ReadonlyMap<string, readonly string[]>,
): Migrated {
  const entries: EntrySpec[] = [];
  const leftOut: LeftOut[] = [];
  const changed: { id: string; what: string }[] = [];
  for (const raw of documentOf(text)) {
    const parsed = spireEntry.safeParse(raw);
    if (!parsed.success) {
      const { id: name, spiffe_id: of } = (raw ?? {}) as {
        id?: unknown;
        spiffe_id?: { trust_domain?: unknown; path?: unknown };
      };
      const spiffeId = typeof of === 'object' ? `spiffe://${String(of.trust_domain)}${String(of.path)}` : '?';
      leftOut.push({ id: String(name ?? '?'), spiffeId, why: `not understood: ${sentenceOf(parsed.error)}` });
      continue;
    }
    const entry = parsed.data;
    const why = withoutCounterpart(entry, nodesOf);
    const spiffeId = textOf(entry.spiffe_id);
    if (why !== undefined) {
      leftOut.push({ id: entry.id, spiffeId, why });
      continue;
    }
    const nodes = nodesOf.get(textOf(entry.parent_id))!;
    for (const node of nodes) {
      const ttl = (name: keyof typeof TTL, seconds: number) => {
        if (seconds === 0) return {};
        const [least, most] = TTL[name];
        const bounded = Math.min(Math.max(seconds, least), most);
        if (bounded !== seconds) changed.push({ id: entry.id, what: `${name} is ${bounded}, it was ${seconds}` });
        return { [name]: bounded };
      };
      const spec = entrySchema.safeParse({
        id: nodes.length === 1 ? entry.id : `${entry.id}.${node}`,
        spiffeId,
        node,
        selectors: entry.selectors.map(({ type, value }) => `${type}:${value}`),
        hint: entry.hint,
        ...ttl('ttlSeconds', entry.x509_svid_ttl),
        ...ttl('jwtTtlSeconds', entry.jwt_svid_ttl),
        dnsNames: entry.dns_names,
        federatesWith: entry.federates_with.map((name) => name.replace(/^spiffe:\/\//, '')),
        admin: entry.admin,
        downstream: entry.downstream,
      });
      const problem = spec.success ? problemOf(spec.data, trustDomain, () => true) : sentenceOf(spec.error);
      if (problem !== undefined || !spec.success) leftOut.push({ id: entry.id, spiffeId, why: problem ?? '' });
      else {
        entries.push(spec.data);
        const unknown = new Set(entry.selectors.map(({ type }) => type).filter((type) => !ATTESTED.has(type)));
        if (unknown.size > 0) {
          const what = `kept, but matches nothing yet: no agent here attests ${[...unknown].join(', ')} selectors`;
          changed.push({ id: spec.data.id, what });
        }
      }
    }
  }
  return { entries, leftOut, changed };
}

function withoutCounterpart(entry: SpireEntry, nodesOf: ReadonlyMap<string, readonly string[]>): string | undefined {
  if (entry.parent_id.path === '/spire/server') {
    return 'it names a group of nodes; list them in the server’s configuration, and give --parent with its SPIFFE ID for the entries below it';
  }
  if (entry.store_svid) return 'store_svid: SVIDs are given to workloads, not put into other stores';
  if (entry.expires_at !== 0) {
    const when = new Date(entry.expires_at * 1000).toISOString();
    return `it ends at ${when}: entries here have no end; register it by hand if it is to stay`;
  }
  if (!nodesOf.has(textOf(entry.parent_id))) {
    return `no node is given for its parent; say --parent ${textOf(entry.parent_id)}=NODE`;
  }
  return undefined;
}

function documentOf(text: string): unknown[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (thrown) {
    throw new CountersignError('bad-input', 'not JSON; print it with: spire-server entry show -output json', {
      cause: thrown,
    });
  }
  const document = spireEntries.safeParse(value);
  if (document.success) return document.data.entries;
  const message = `not what spire-server entry show -output json prints, or a part of it: ${sentenceOf(document.error)}`;
  throw new CountersignError('bad-input', message);
}

function textOf({ trust_domain, path }: SpireEntry['spiffe_id']): string {
  return `spiffe://${trust_domain}${path}`;
}

function sentenceOf(error: z.ZodError): string {
  return error.issues.map(({ path, message }) => `${path.join('.') || 'document'}: ${message}`).join('; ');
}
