/** Joining: a join token for a node SVID, once. A certificate's story, step 1, the node's side. */
import type { ClientDuplexStream, ServiceError } from '@grpc/grpc-js';
import {
  AttestRequest,
  type AttestResponse,
  type AttestResult,
} from '../../../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../../base/clock.ts';
import type { TrustBundle } from '../../model/identity.ts';
import { type NodeName, nodeId, type SpiffeId } from '../../model/ids.ts';
import { createCsr } from '../../pki/csr.ts';
import { generateKey } from '../../pki/keys.ts';
import { checkIssued } from './issued.ts';
import type { Life } from './life.ts';
import type { NodeState } from './node-state.ts';
import { Connection, ServerError } from './transport.ts';

const ATTEST_MS = 15_000;

export interface AttestOptions {
  readonly address: string;
  readonly bundle: TrustBundle;
  readonly nodeName: NodeName;
  readonly spiffeId: SpiffeId;
  readonly token: string;
  readonly peerAddresses: readonly string[];
  readonly clock: Clock;
  readonly life: Life;
}

/** @throws ServerError: refused, or not reached. */
export async function attest(options: AttestOptions): Promise<NodeState> {
  const { address, bundle, nodeName, spiffeId, token, peerAddresses, clock } = options;
  const privateKey = generateKey();
  const connection = new Connection({ address, bundle, svid: undefined, clock });
  try {
    const stream = connection.rpc.attest({ deadline: Date.now() + ATTEST_MS });
    const params = {
      attestor: 'join_token',
      payload: Buffer.from(token, 'latin1'),
      nodeName,
      csr: createCsr(privateKey),
      peerAddresses: [...peerAddresses],
    };
    stream.write(AttestRequest.create({ step: { $case: 'params', value: params } }));
    const result = await resultOf(stream, connection);
    // the server is proven, but what it sent is looked at all the same: a mistake shows here and not at the first peer
    const trusted: TrustBundle = { trustDomain: bundle.trustDomain, authorities: result.bundle };
    const issued = checkIssued(
      result.certificateChain,
      trusted,
      { spiffeId, privateKey, node: undefined },
      clock.nowMs(),
    );
    if (!issued.ok || issued.value.leaf.nodeIncarnation !== result.incarnation || result.nodeId === 0) {
      const reason = issued.ok ? 'PEER_CERTIFICATE_REJECTED' : issued.error;
      throw new ServerError(
        'internal',
        reason,
        `identity server at ${address}: sent a node SVID that is not ours: ${reason}`,
      );
    }
    const { leaf, svid } = issued.value;
    const { incarnation, session } = result;
    return {
      svid,
      notBeforeMs: leaf.notBeforeMs,
      nodeId: nodeId(result.nodeId),
      incarnation,
      bundle: result.bundle,
      session,
      life: options.life,
    };
  } finally {
    connection.close();
  }
}

function resultOf(
  stream: ClientDuplexStream<AttestRequest, AttestResponse>,
  connection: Connection,
): Promise<AttestResult> {
  return new Promise((resolve, reject) => {
    stream.on('data', ({ step }: AttestResponse) => {
      if (step?.$case === 'result') resolve(step.value);
      else reject(new ServerError('unsupported', 'ATTEST_UNSUPPORTED', 'the server asks for more than a join token'));
    });
    stream.on('error', (error: ServiceError) => reject(connection.errorOf(error)));
    stream.on('end', () => {
      reject(new ServerError('unavailable', undefined, 'the server ended the attestation without a result'));
      stream.end();
    });
  });
}
