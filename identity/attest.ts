/**
 * Node attestation: proof → node SVID, node id, incarnation. A certificate's story, step 1. Proof comes first, so that
 * whoever has none learns nothing, not even which nodes there are.
 */
import { status } from '@grpc/grpc-js';
import type { CertificateAuthority, IssuedSvid } from '../ca/api.ts';
import type { AttestParams, AttestResult } from '../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../src/base/clock.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName } from '../src/model/ids.ts';
import { parseNodeName } from '../src/model/spiffe-id.ts';
import { verifyCsr } from '../src/pki/csr.ts';
import type { Nodes } from './nodes.ts';
import { parsePeerAddresses } from './peer-addresses.ts';
import { Refusal } from './refusal.ts';
import type { Store } from './store.ts';
import { findToken } from './tokens.ts';

/** Verifies a claim to be a node. It may ask one question after another. */
export interface NodeAttestor {
  readonly type: string;
  /**
   * Whether a node that attested before may do so again is each attestor's own rule: a join token is good once, a certificate
   * as its configuration says.
   * @param challenge sends a question and waits for the answer.
   * @returns what makes the proof unusable for a second time, done just before the node is admitted; false if it was too late.
   * @throws Refusal
   */
  verify(
    name: NodeName,
    proof: { readonly payload: Buffer; readonly csr: Buffer },
    challenge: (question: Buffer) => Promise<Buffer>,
  ): Promise<{ consume(): boolean }>;
}

export function joinTokenAttestor(store: Store, clock: Clock): NodeAttestor {
  return {
    type: 'join_token',
    async verify(name, { payload }) {
      const token = payload.length <= 128 ? payload.toString('latin1') : '';
      const record = findToken(store, token, name, clock.nowMs());
      if (record === undefined) throw new Refusal('ATTEST_TOKEN_UNKNOWN', status.UNAUTHENTICATED);
      return { consume: () => store.takeToken(record.hash) };
    },
  };
}

export interface AttestOptions {
  readonly attestors: readonly NodeAttestor[];
  readonly nodes: Nodes;
  readonly ca: CertificateAuthority;
  readonly clock: Clock;
  readonly audit: AuditSink;
  /** Whether an agent of this name is connected now. */
  readonly isLive: (name: NodeName) => boolean;
  /** The name is taken from now on, until its holder syncs or a while has passed. */
  readonly hold: (name: NodeName) => void;
}

export async function attest(
  options: AttestOptions,
  params: AttestParams,
  remote: string,
  challenge: (question: Buffer) => Promise<Buffer>,
): Promise<AttestResult> {
  const { audit } = options;
  const name = parseNodeName(params.nodeName);
  try {
    if (!name.ok) throw new Refusal('ATTEST_TOKEN_UNKNOWN', status.UNAUTHENTICATED);
    return await admit(options, name.value, params, challenge);
  } catch (thrown) {
    const reason = thrown instanceof Refusal ? { reason: thrown.reason } : {};
    const source = { ...(name.ok ? { node: name.value } : {}), address: remote };
    audit.emit({ kind: 'node.attest_refused', ...reason, source, detail: { attestor: params.attestor.slice(0, 32) } });
    throw thrown;
  }
}

async function admit(
  { attestors, nodes, ca, clock, audit, isLive, hold }: AttestOptions,
  name: NodeName,
  params: AttestParams,
  challenge: (question: Buffer) => Promise<Buffer>,
): Promise<AttestResult> {
  // 1. The proof holds for this name.
  const attestor = attestors.find((a) => a.type === params.attestor);
  if (attestor === undefined) throw new Refusal('ATTEST_UNSUPPORTED', status.UNIMPLEMENTED);
  const proof = await attestor.verify(name, params, challenge);
  // 2. The configuration still lists the node, and nobody banned it.
  if (!nodes.isConfigured(name)) throw new Refusal('PEER_UNKNOWN_NODE', status.PERMISSION_DENIED);
  if (nodes.isBanned(name)) throw new Refusal('ATTEST_NODE_BANNED', status.PERMISSION_DENIED);
  // 3. Nobody holds the name. A refusal here leaves the token good.
  if (isLive(name)) throw new Refusal('ATTEST_NODE_EXISTS', status.ALREADY_EXISTS);
  // 4. What a revocation of this very second took back would be taken back again.
  const spiffeId = nodes.spiffeIdOf(name);
  if (ca.isRevoked({ spiffeId, serial: '', node: spiffeId, notBeforeMs: notBeforeOf(clock.nowMs()) })) {
    throw new Refusal('ATTEST_NODE_BANNED', status.UNAVAILABLE, 'it was revoked just now, try again in a second');
  }
  // 5. The rest of the request is sound.
  if (!verifyCsr(params.csr).ok) throw new Refusal('ISSUE_CSR_INVALID', status.INVALID_ARGUMENT);
  const peerAddresses = parsePeerAddresses(params.peerAddresses);
  // 6. The proof is used up; from here on nothing else can be admitted with it.
  if (!proof.consume()) throw new Refusal('ATTEST_TOKEN_UNKNOWN', status.UNAUTHENTICATED);
  hold(name);
  const node = nodes.attest(name, attestor.type, peerAddresses, clock.nowMs());
  const issued = await ca.issueNodeSvid({
    csr: params.csr,
    name,
    incarnation: BigInt(node.incarnation),
    requester: attestor.type,
  });
  if (!issued.ok) throw new Refusal(issued.error, status.INVALID_ARGUMENT);
  nodes.admit(node, issued.value.notAfterMs);
  emitAttested(audit, name, node.incarnation, issued.value, attestor.type);
  return {
    spiffeId: issued.value.spiffeId,
    certificateChain: issued.value.chain,
    nodeId: node.nodeId,
    incarnation: BigInt(node.incarnation),
    bundle: ca.bundle().authorities,
    session: BigInt(node.sessionConfirmed),
  };
}

/** The notBefore that an SVID issued now would have: the CA backdates by 10 s, to whole seconds. */
export function notBeforeOf(nowMs: number): number {
  return (Math.floor(nowMs / 1000) - 10) * 1000;
}

function emitAttested(audit: AuditSink, name: NodeName, incarnation: number, svid: IssuedSvid, attestor: string): void {
  const { spiffeId, serial, notAfterMs } = svid;
  audit.emit({
    kind: 'node.attested',
    source: { node: name, spiffeId },
    detail: { attestor, incarnation, serial, notAfterMs },
  });
}
