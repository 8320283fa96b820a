/** A fresh node SVID for the one that the node has. A certificate's story, step 21. */
import type { RenewRequest, RenewResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import type { TrustBundle } from '../../model/identity.ts';
import { createCsr } from '../../pki/csr.ts';
import { generateKey } from '../../pki/keys.ts';
import { checkIssued } from './issued.ts';
import type { NodeState } from './node-state.ts';
import { type Connection, ServerError } from './transport.ts';

const CALL_MS = 10_000;

/**
 * Of the same incarnation, or of a higher one: for a node that begins a new life.
 * @param connection proven with the SVID of `state`
 * @throws ServerError
 */
export async function renewNodeSvid(
  connection: Connection,
  state: NodeState,
  bundle: TrustBundle,
  nowMs: number,
  newIncarnation: boolean,
): Promise<Pick<NodeState, 'svid' | 'notBeforeMs' | 'incarnation'>> {
  const privateKey = generateKey();
  const request: RenewRequest = { csr: createCsr(privateKey), newIncarnation, session: state.session };
  const { certificateChain } = await connection.unary<RenewRequest, RenewResponse>('renew', request, CALL_MS);
  const wanted = { spiffeId: state.svid.spiffeId, privateKey, node: undefined };
  const issued = checkIssued(certificateChain, bundle, wanted, nowMs);
  const incarnation = issued.ok ? issued.value.leaf.nodeIncarnation : undefined;
  const isOurs =
    incarnation !== undefined && (newIncarnation ? incarnation > state.incarnation : incarnation === state.incarnation);
  if (!issued.ok || !isOurs) {
    const reason = issued.ok ? 'PEER_CERTIFICATE_REJECTED' : issued.error;
    throw new ServerError('internal', reason, `the server renewed to a node SVID that is not ours: ${reason}`);
  }
  const { leaf, svid } = issued.value;
  return { svid, notBeforeMs: leaf.notBeforeMs, incarnation };
}
