/**
 * `spiffe` on one node: both workloads are proven against the same rules as across nodes, without a channel. In place of an
 * authenticator, the private key that this node holds must be the one that the certificate names.
 */
import { createPublicKey } from 'node:crypto';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuthKey, FlowTuple } from '../model/datapath.ts';
import { LOCAL_NODE, type SecurityIdentity, type SpiffeId } from '../model/ids.ts';
import { readChainCertificate } from '../pki/verify.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { AuthMethod } from './auth-method.ts';
import type { Outcome, ProvenPair } from './exchange-host.ts';
import type { OwnProof, OwnProofs } from './own-proof.ts';
import { type Proof, type ProofFacts, verifyChain } from './verify-proof.ts';

export interface SpiffeOnNodeOptions {
  readonly facts: ProofFacts;
  readonly owns: OwnProofs;
  readonly nodeSpiffeId: SpiffeId;
  epoch(): number;
  write(pairs: readonly ProvenPair[]): AuthRecord[];
}

interface LocalProof {
  readonly own: OwnProof;
  readonly proof: Proof;
}

export class SpiffeOnNode implements AuthMethod {
  readonly type = 'spiffe';
  readonly #options: SpiffeOnNodeOptions;
  #next = 1;

  constructor(options: SpiffeOnNodeOptions) {
    this.#options = options;
  }

  /** Writes both directions, from both sides' proof, as across nodes. */
  prove(key: AuthKey): Promise<Outcome> {
    return Promise.resolve(this.#prove(key));
  }

  /** `back`: the same flow as the other endpoint sees it. */
  proveFlow(key: AuthKey, flow: FlowTuple, back: FlowTuple): Promise<Outcome> {
    return Promise.resolve(this.#prove(key, flow, back));
  }

  #prove(key: AuthKey, ...flows: [] | [FlowTuple, FlowTuple]): Outcome {
    const epoch = this.#options.epoch();
    const local = this.#proofOf(key.local, epoch);
    if (!local.ok) return local;
    const remote = this.#proofOf(key.remote, epoch);
    if (!remote.ok) return remote;
    const correlation = `local/${key.local}-${key.remote}-${this.#next++}`;
    const pair = (near: LocalProof, far: LocalProof, initiated: boolean, flow?: FlowTuple): ProvenPair => ({
      local: near.own.identity,
      remote: far.own.identity,
      own: near.own,
      remoteProof: far.proof,
      initiated,
      correlation,
      peerUntilMs: undefined,
      ...(flow === undefined ? {} : { flow }),
    });
    const there = pair(local.value, remote.value, true, flows[0]);
    const back = pair(remote.value, local.value, false, flows[1]);
    const isOne = key.local === key.remote && flows.length === 0;
    const [record] = this.#options.write(isOne ? [there] : [there, back]);
    return ok(record!);
  }

  /** Steps 2 to 7 of verify-proof.ts for one side of the pair. */
  #proofOf(identity: SecurityIdentity, epoch: number): Result<LocalProof, ReasonCode> {
    const { owns, facts, nodeSpiffeId } = this.#options;
    const own = owns.of(identity);
    if (!own.ok) return own;
    const { chain, privateKey } = own.value.svid;
    const proof = verifyChain(facts, { identity, node: LOCAL_NODE, nodeSpiffeId, epoch }, chain);
    if (!proof.ok) return proof;
    const leaf = readChainCertificate(chain[0]!);
    if (!leaf.ok || !createPublicKey(privateKey).equals(leaf.value.publicKey)) return err('AUTH_BAD_SIGNATURE');
    return ok({ own: own.value, proof: proof.value });
  }
}
