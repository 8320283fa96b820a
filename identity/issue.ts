/**
 * X.509-SVIDs for workloads, and a node's own renewal. A certificate's story, step 2: an agent gets an SVID only for
 * entries whose parent is its own node, and the certificate names that node.
 */
import { status } from '@grpc/grpc-js';
import type { CertificateAuthority } from '../ca/api.ts';
import type { Csr, IssueResult, RenewRequest } from '../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../src/base/clock.ts';
import { err, ok, type Result } from '../src/base/errors.ts';
import { type ReasonCode, reasonCodes } from '../src/base/registry/reason-codes.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName } from '../src/model/ids.ts';
import { notBeforeOf } from './attest.ts';
import type { Nodes } from './nodes.ts';
import { Refusal } from './refusal.ts';
import type { Registry } from './registry.ts';
import type { NodeRecord } from './store.ts';

const MAX_BATCH = 256;

export interface IssueOptions {
  readonly ca: CertificateAuthority;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly clock: Clock;
  readonly audit: AuditSink;
}

/** One result for each request, in order. @throws Refusal if the batch is too large. */
export async function issue(options: IssueOptions, node: NodeRecord, requests: readonly Csr[]): Promise<IssueResult[]> {
  if (requests.length > MAX_BATCH) {
    throw new Refusal('ISSUE_CSR_INVALID', status.RESOURCE_EXHAUSTED, `at most ${MAX_BATCH} requests at once`);
  }
  // all at once: the CA's ledger commits what comes in one turn together
  return Promise.all(
    requests.map(async (request): Promise<IssueResult> => {
      const issued = await issueOne(options, node, request);
      return issued.ok
        ? { outcome: { $case: 'svid', value: { certificateChain: issued.value } } }
        : { outcome: { $case: 'refused', value: `${issued.error}: ${reasonCodes[issued.error]}` } };
    }),
  );
}

async function issueOne(
  { ca, registry, nodes, clock, audit }: IssueOptions,
  node: NodeRecord,
  request: Csr,
): Promise<Result<Buffer[], ReasonCode>> {
  const actor = nodes.spiffeIdOf(node.name);
  const entry = registry.entry(request.entryId);
  const refuse = (reason: ReasonCode) => {
    const source = { node: node.name, ...(entry?.node === node.name ? { spiffeId: entry.spiffeId } : {}) };
    audit.emit({ kind: 'svid.refused', reason, actor, source, detail: { entry: request.entryId.slice(0, 128) } });
    return err(reason);
  };
  // 1. The entry is this node's. That there is one of another node is not told.
  if (entry === undefined || entry.node !== node.name) return refuse('ISSUE_NOT_YOUR_ENTRY');
  // 2. Its identity was not taken back since it was registered, nor in this very second.
  const { spiffeId } = entry;
  const subject = { spiffeId, serial: '', node: actor, notBeforeMs: notBeforeOf(clock.nowMs()) };
  if (entry.barred || ca.isRevoked(subject)) return refuse('ISSUE_REVOKED');
  // 3. The CA verifies the request's signature and takes nothing but its key.
  const issued = await ca.issueWorkloadSvid({
    csr: request.csr,
    spiffeId,
    node: actor,
    dnsNames: entry.dnsNames,
    requester: actor,
    ...(entry.ttlSeconds > 0 ? { ttlSeconds: entry.ttlSeconds } : {}),
  });
  if (!issued.ok) return refuse(issued.error);
  const { chain, serial, notAfterMs } = issued.value;
  audit.emit({
    kind: 'svid.issued',
    actor,
    source: { spiffeId, identity: entry.identity, node: node.name },
    detail: { entry: entry.id, serial, notAfterMs },
  });
  return ok(chain);
}

/** Whether an agent holds the node's name now, and holding it until its agent is there. */
export interface NameHolder {
  isLive(name: NodeName): boolean;
  expect(name: NodeName): void;
}

/** A fresh node SVID of the same incarnation, or of the next one: of a node that begins a new life. */
export async function renew(
  options: IssueOptions,
  names: NameHolder,
  caller: NodeRecord,
  { csr, newIncarnation, session }: RenewRequest,
): Promise<Buffer[]> {
  const { ca, nodes, audit } = options;
  const spiffeId = nodes.spiffeIdOf(caller.name);
  if (newIncarnation) admitNewLife(options, names, caller.name, session);
  const node = newIncarnation ? nodes.newIncarnation(caller.name) : caller;
  const incarnation = BigInt(node.incarnation);
  const issued = await ca.issueNodeSvid({ csr, name: node.name, incarnation, requester: spiffeId });
  if (!issued.ok) {
    audit.emit({ kind: 'svid.refused', reason: issued.error, actor: spiffeId, source: { node: node.name, spiffeId } });
    throw new Refusal(issued.error, status.INVALID_ARGUMENT);
  }
  const { chain, serial, notAfterMs } = issued.value;
  // Peers bar the earlier incarnation from now on.
  if (newIncarnation) nodes.admit(node, notAfterMs);
  else nodes.setNotAfter(node.name, notAfterMs);
  audit.emit({
    kind: newIncarnation ? 'node.attested' : 'svid.issued',
    actor: spiffeId,
    source: { node: node.name, spiffeId },
    detail: { serial, notAfterMs, ...(newIncarnation ? { attestor: 'node_svid', incarnation: node.incarnation } : {}) },
  });
  return chain;
}

/** Only the last holder of the name, and only while nobody holds it. @throws Refusal */
function admitNewLife({ nodes, audit }: IssueOptions, names: NameHolder, name: NodeName, session: bigint): void {
  if (names.isLive(name)) throw new Refusal('ATTEST_NODE_EXISTS', status.ALREADY_EXISTS);
  if (!nodes.isLastSession(name, session)) {
    audit.emit({ kind: 'node.attest_refused', reason: 'ATTEST_NODE_CLONED', source: { node: name } });
    throw new Refusal('ATTEST_NODE_CLONED', status.PERMISSION_DENIED);
  }
  names.expect(name);
}
