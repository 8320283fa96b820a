/** Taking back: on disk first, then told to every agent, then counted who has it in force. A certificate's story, its other end. */
import { status } from '@grpc/grpc-js';
import { type CertificateAuthority, checkReason, type RevocationTarget } from '../ca/api.ts';
import { CountersignError } from '../src/base/errors.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { Revocation } from '../src/model/identity.ts';
import { trustDomainOf } from '../src/model/spiffe-id.ts';
import type { Feed } from './feed.ts';
import type { Nodes } from './nodes.ts';
import { Refusal } from './refusal.ts';
import type { Registry } from './registry.ts';
import type { SigningKeys } from './signing-keys.ts';
import type { InForce, SyncHub } from './sync.ts';

export interface RevokeOptions {
  readonly ca: CertificateAuthority;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly feed: Feed;
  readonly hub: SyncHub;
  readonly signingKeys: SigningKeys;
  readonly audit: AuditSink;
}

export interface Revoked extends InForce {
  readonly sequence: bigint;
  /** From the request to the last agent's word; NaN never: if some are missing, the time waited. */
  readonly inForceMs: number;
}

/** @throws CountersignError bad-input or not-found; then nothing was revoked. */
export async function revoke(
  options: RevokeOptions,
  named: RevocationTarget,
  reason: string,
  waitMs: number,
  actor: string,
): Promise<Revoked> {
  const { ca, registry, nodes, feed, hub, signingKeys, audit } = options;
  const started = performance.now();
  const what = 'serial' in named ? { serial: serialOf(named.serial) } : named;
  check(options, what);
  checkReason(reason);
  // barred first: if the server dies in between, nothing new is issued for what was to be revoked
  if ('spiffeId' in what) registry.bar(what.spiffeId);
  if ('node' in what) nodes.evict(what.node);
  const revocation = 'authority' in what ? await revokeKey(options, what.authority, reason) : ca.revoke(what, reason);
  const gone = 'node' in what ? { removedNodes: [what.node] } : {};
  if ('node' in what) hub.disconnect(what.node, new Refusal('ATTEST_NODE_BANNED', status.PERMISSION_DENIED));
  const version = 'authority' in what ? signingKeys.version : feed.publish({ revocations: [revocation], ...gone });
  const [kind, value] = Object.entries(what)[0] as [string, string];
  const detail = { what: kind, value, sequence: Number(revocation.sequence) };
  audit.emit({ kind: 'svid.revoked', reason: 'REVOKED_BY_ADMIN', actor, detail: { ...detail, text: reason } });
  const { inForce, missing } = await hub.inForce(version, waitMs);
  const inForceMs = performance.now() - started;
  audit.emit({
    kind: 'revocation.in_force',
    actor,
    detail: {
      ...detail,
      inForce: inForce.join(' '),
      missing: missing.join(' '),
      ms: Math.round(inForceMs * 1000) / 1000,
    },
  });
  return { sequence: revocation.sequence, inForce, missing, inForceMs };
}

/** The bundle without it and its revocation are one change, which the CA tells. */
async function revokeKey({ ca, signingKeys }: RevokeOptions, id: string, reason: string): Promise<Revocation> {
  await signingKeys.revoke('x509', id, reason);
  const made = ca.revocations().findLast(({ what }) => 'authority' in what && what.authority === id);
  if (made === undefined) throw new CountersignError('internal', `${id} was revoked and is not on the list`);
  return made;
}

/** As the ledger has it, from how OpenSSL, Go and Python print it: upper case, with colons, with or without leading zeros. */
function serialOf(text: string): string {
  const digits = text
    .toLowerCase()
    .replaceAll(':', '')
    .replace(/^0+(?=.)/, '');
  return digits.length % 2 === 0 ? digits : `0${digits}`;
}

function check({ ca, nodes }: RevokeOptions, what: RevocationTarget): void {
  if ('spiffeId' in what && trustDomainOf(what.spiffeId) !== ca.trustDomain) {
    throw new CountersignError(
      'bad-input',
      `${what.spiffeId} is not of the trust domain ${ca.trustDomain}; correct it`,
    );
  }
  if ('serial' in what && ca.svidBySerial(what.serial) === undefined) {
    throw new CountersignError('not-found', `no SVID has the serial number ${what.serial}; see: countersign svid list`);
  }
  if ('node' in what && nodes.node(what.node) === undefined) {
    throw new CountersignError('not-found', `no node ${what.node} ever attested; see: countersign node list`);
  }
}
