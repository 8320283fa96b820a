/**
 * JWT-SVIDs for workloads. A token's story, step 1: an agent that a workload asked asks for it, and gets one only for an entry whose
 * parent is its own node. What the token says is the entry's; only its audience is the workload's word.
 */
import { status } from '@grpc/grpc-js';
import type { IssueJwtRequest, IssueJwtResponse } from '../proto/gen/countersign/server/v1/server.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import { audienceProblem } from '../src/pki/jwt.ts';
import { notBeforeOf } from './attest.ts';
import type { IssueOptions } from './issue.ts';
import { Refusal } from './refusal.ts';
import type { NodeRecord } from './store.ts';

export interface IssueJwtOptions extends IssueOptions {
  /** `iss`: of the OpenID Connect discovery document that publishes the keys, if there is one. */
  readonly issuer: string | undefined;
}

/** @throws Refusal */
export async function issueJwt(
  options: IssueJwtOptions,
  node: NodeRecord,
  { entryId, audience }: IssueJwtRequest,
): Promise<IssueJwtResponse> {
  const { ca, registry, nodes, clock, audit, issuer } = options;
  const actor = nodes.spiffeIdOf(node.name);
  const entry = registry.entry(entryId);
  const refusal = (reason: ReasonCode, grpcStatus: number, advice?: string) => {
    const source = { node: node.name, ...(entry?.node === node.name ? { spiffeId: entry.spiffeId } : {}) };
    const detail = { entry: entryId.slice(0, 128), type: 'jwt' };
    audit.emit({ kind: 'svid.refused', reason, actor, source, detail });
    return new Refusal(reason, grpcStatus, advice);
  };
  // 1. The entry is this node's. That there is one of another node is not told.
  if (entry === undefined || entry.node !== node.name) {
    throw refusal('ISSUE_NOT_YOUR_ENTRY', status.PERMISSION_DENIED);
  }
  // 2. Its identity was not taken back since it was registered, nor in this very second.
  const { spiffeId } = entry;
  const subject = { spiffeId, serial: '', node: actor, notBeforeMs: notBeforeOf(clock.nowMs()) };
  if (entry.barred || ca.isRevoked(subject)) throw refusal('ISSUE_REVOKED', status.PERMISSION_DENIED);
  // 3. The audience is one that a validator could be, and not so many that the token is for everybody.
  const problem = audienceProblem(audience);
  if (problem !== undefined) throw refusal('JWT_AUDIENCE', status.INVALID_ARGUMENT, problem);
  const audiences = [...new Set(audience)];
  // 4. The CA signs what the entry says, with the key that is active now.
  const issued = await ca.issueJwtSvid({
    spiffeId,
    audience: audiences,
    node: actor,
    requester: actor,
    ...(entry.jwtTtlSeconds > 0 ? { ttlSeconds: entry.jwtTtlSeconds } : {}),
    ...(issuer === undefined ? {} : { issuer }),
  });
  if (!issued.ok) throw refusal(issued.error, status.UNAVAILABLE);
  const { token, issuedAtMs, expiresAtMs, keyId } = issued.value;
  audit.emit({
    kind: 'svid.issued',
    actor,
    source: { spiffeId, identity: entry.identity, node: node.name },
    detail: { entry: entry.id, type: 'jwt', audience: audiences.join(' '), keyId, notAfterMs: expiresAtMs },
  });
  return { token, issuedAt: BigInt(Math.floor(issuedAtMs / 1000)), expiresAt: BigInt(Math.floor(expiresAtMs / 1000)) };
}
