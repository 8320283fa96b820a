/**
 * An authority for a server below. Who asks is a workload of this trust domain whose entry says `downstream`: what it gets signs any SVID of
 * the trust domain, so no role opens this and it opens nothing else.
 */
import type { CertificateAuthority } from '../../ca/api.ts';
import type {
  SignDownstreamAuthorityReply,
  SignDownstreamAuthorityRequest,
} from '../../proto/gen/countersign/admin/v1/admin.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { NodeName, SpiffeId } from '../../src/model/ids.ts';
import { nodeSpiffeId } from '../../src/model/spiffe-id.ts';
import { Refusal, toServiceError } from '../refusal.ts';
import type { Registry } from '../registry.ts';
import { type AdminContext, type AdminWorkload, type Handler, statusOf } from './service.ts';

export interface DownstreamOptions extends AdminContext {
  readonly ca: CertificateAuthority;
  readonly registry: Pick<Registry, 'entriesWith'>;
  /** By gRPC's getPeer(): who calls over TLS, or why it is nobody. */
  readonly workloadOf: (peer: string) => AdminWorkload | ReasonCode;
  /** @throws Refusal ISSUE_RATE */
  readonly takeShare: (node: NodeName, count: number) => void;
}

export function downstreamHandler(
  options: DownstreamOptions,
): Handler<SignDownstreamAuthorityRequest, SignDownstreamAuthorityReply> {
  const { ca, audit, log, takeShare } = options;
  return (call, done) => {
    const serve = async () => {
      const { spiffeId, node } = permitted(options, call);
      takeShare(node, 1);
      const { csr, ttlSeconds } = call.request;
      const issued = await ca.signDownstream({
        csr,
        requester: spiffeId,
        node: nodeSpiffeId(ca.trustDomain, node),
        ...(ttlSeconds === 0 ? {} : { ttlSeconds }),
      });
      if (!issued.ok) {
        audit.emit({ kind: 'svid.refused', reason: issued.error, actor: spiffeId, source: { spiffeId, node } });
        throw new Refusal(issued.error, statusOf(issued.error));
      }
      // a revocation looks for what was signed before it: what was being signed meanwhile does not leave
      permitted(options, call);
      const { chain, serial, notAfterMs } = issued.value;
      const detail = { serial, notAfterMs };
      audit.emit({ kind: 'authority.signed', actor: spiffeId, source: { spiffeId, node }, detail });
      return { chain, roots: ca.bundle().authorities };
    };
    serve().then(
      (reply) => done(null, reply),
      (thrown: unknown) => done(toServiceError(thrown, log)),
    );
  };
}

/** @throws Refusal */
function permitted(
  options: DownstreamOptions,
  call: { getPeer(): string; getPath(): string },
): { spiffeId: SpiffeId; node: NodeName } {
  const { registry, workloadOf, audit } = options;
  const workload = workloadOf(call.getPeer());
  const refuse = (reason: ReasonCode): never => {
    const actor = typeof workload === 'string' ? {} : { actor: workload.spiffeId };
    audit.emit({ kind: 'admin.refused', reason, ...actor, detail: { method: call.getPath() } });
    throw new Refusal(reason, statusOf(reason));
  };
  // 1. It shows an SVID that stands (mtls.ts), bound to a node: a workload's.
  if (typeof workload === 'string') return refuse(workload);
  const { spiffeId, node } = workload;
  if (node === undefined) return refuse('ISSUE_NOT_DOWNSTREAM');
  // 2. An entry of that very node says downstream.
  const entries = [...registry.entriesWith(spiffeId)].filter((entry) => entry.node === node && entry.downstream);
  if (entries.length === 0) return refuse('ISSUE_NOT_DOWNSTREAM');
  // 3. It was not barred by a revocation since.
  if (entries.every(({ barred }) => barred)) return refuse('ISSUE_REVOKED');
  return { spiffeId, node };
}
