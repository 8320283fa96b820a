/** Joining: a proof of which node this is for a node SVID. A certificate's story, step 1, the node's side. */
import type { KeyObject } from 'node:crypto';
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
import { answerChallenge, encodePayload, X509POP } from '../../pki/x509pop.ts';
import { ownBundleOf } from './bundles.ts';
import { checkIssued } from './issued.ts';
import type { Life } from './life.ts';
import type { NodeState } from './node-state.ts';
import { Connection, ServerError } from './transport.ts';

const ATTEST_MS = 15_000;

/** What a node can show of itself. */
export type NodeProof =
  | { readonly type: 'join_token'; readonly token: string }
  /** A certificate that the operator's own authority gave it: leaf first, DER. */
  | { readonly type: 'x509pop'; readonly chain: readonly Buffer[]; readonly privateKey: KeyObject };

export interface AttestOptions {
  readonly addresses: readonly string[];
  readonly bundle: TrustBundle;
  readonly nodeName: NodeName;
  readonly spiffeId: SpiffeId;
  readonly proof: NodeProof;
  readonly peerAddresses: readonly string[];
  readonly clock: Clock;
  readonly life: Life;
}

/** @throws ServerError: refused, or not reached. */
export async function attest(options: AttestOptions): Promise<NodeState> {
  const { addresses, bundle, nodeName, spiffeId, proof, peerAddresses, clock } = options;
  const privateKey = generateKey();
  const connection = new Connection({ addresses, bundle, svid: undefined, clock });
  try {
    const stream = connection.rpc.attest({ deadline: Date.now() + ATTEST_MS });
    const csr = createCsr(privateKey);
    const payload = proof.type === X509POP ? encodePayload(proof.chain) : Buffer.from(proof.token, 'latin1');
    const params = { attestor: proof.type, payload, nodeName, csr, peerAddresses: [...peerAddresses] };
    stream.write(AttestRequest.create({ step: { $case: 'params', value: params } }));
    const result = await resultOf(stream, connection, (challenge) =>
      proof.type === X509POP ? answerChallenge(challenge, { node: spiffeId, csr }, proof.privateKey) : undefined,
    );
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
        `identity server at ${addresses.join(', ')}: sent a node SVID that is not ours: ${reason}`,
      );
    }
    const { leaf, svid } = issued.value;
    const { incarnation, session } = result;
    return {
      svid,
      notBeforeMs: leaf.notBeforeMs,
      nodeId: nodeId(result.nodeId),
      incarnation,
      bundle: ownBundleOf(bundle.trustDomain, result.bundle),
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
  answer: (challenge: Buffer) => Buffer | undefined,
): Promise<AttestResult> {
  return new Promise((resolve, reject) => {
    stream.on('data', ({ step }: AttestResponse) => {
      if (step?.$case === 'result') return resolve(step.value);
      const value = step?.$case === 'challenge' ? answer(step.value) : undefined;
      if (value !== undefined) stream.write(AttestRequest.create({ step: { $case: 'challengeResponse', value } }));
      else reject(new ServerError('unsupported', 'ATTEST_UNSUPPORTED', 'the server asks for more than this proof has'));
    });
    stream.on('error', (error: ServiceError) => reject(connection.errorOf(error)));
    stream.on('end', () => {
      reject(new ServerError('unavailable', undefined, 'the server ended the attestation without a result'));
      stream.end();
    });
  });
}
