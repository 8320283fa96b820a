/** Does policy allow it, and does it ask for proof? Every line is read; the most specific one that fits decides. */

import type { Side } from './flow.ts';
import type { Owner } from './owner.ts';
import type { AuthType, Direction, Endpoint, PolicyLine, PolicyVerdict, Proof, Reason, State } from './state.ts';

export interface Question {
  readonly localIdentity: number;
  readonly remote: Owner;
  /** In which the flow was begun: whose policy counts. */
  readonly direction: Direction;
  readonly protocol: number;
  /** Of the side that the flow was opened to; of ICMP the type that opened it. */
  readonly port: number;
}

/** Either a refusal, or what proof it takes. */
export type Decision = { readonly refusal: Reason } | { readonly refusal?: undefined; readonly auth: AuthType };

export interface Answer {
  readonly enforced: Decision;
  /** If the policies that only observe were in force too. */
  readonly observed: Decision;
}

const decide = (verdict: PolicyVerdict, auth: AuthType, rule: number): Decision =>
  verdict === 'allow' ? { auth } : { refusal: rule === 0 ? 'POLICY_DENIED' : 'POLICY_DENY_RULE' };

const both = (decision: Decision): Answer => ({ enforced: decision, observed: decision });

/** Unknown identities have no class: a deny rule might have named them. */
export function askPolicy(state: State, q: Question): Answer {
  const local = state.classes.get(q.localIdentity)?.local[q.direction];
  const remote = state.classes.get(q.remote.identity)?.remote[q.direction];
  if (local === undefined || remote === undefined) return both({ refusal: 'POLICY_UNKNOWN_IDENTITY' });
  const fitting = state.policy.filter(
    (line) =>
      line.local === local &&
      (line.remote === remote || line.remote === 0) &&
      line.direction === q.direction &&
      (line.protocol === q.protocol || line.protocol === 0) &&
      (line.protocol === 0 || samePrefix(line.port, q.port, line.portBits)),
  );
  const [best] = fitting.toSorted((a, b) => rank(b) - rank(a));
  if (best === undefined) return both({ refusal: 'POLICY_DENIED' });
  const enforced = decide(best.verdict, best.auth, best.rule);
  const { observed } = best;
  return {
    enforced,
    observed: observed === undefined ? enforced : decide(observed.verdict, observed.auth, observed.rule),
  };
}

const samePrefix = (a: number, b: number, bits: number): boolean =>
  Math.floor(a / 2 ** (16 - bits)) === Math.floor(b / 2 ** (16 - bits));

/** The other side before the port before the protocol. */
const rank = (line: PolicyLine): number =>
  (line.remote === 0 ? 0 : 100) + (line.protocol === 0 ? 0 : 50) + line.portBits;

export type Proven =
  | { readonly until: number }
  | {
      readonly refusal: Reason;
      /** The agents could bring a proof. */
      readonly mendable: boolean;
    };

export const flowProofKey = (endpoint: number, side: Omit<Side, 'direction' | 'ifindex'>): string =>
  `${endpoint} ${side.protocol} ${side.local} ${side.localPort} ${side.remote} ${side.remotePort}`;

export interface ProofQuestion {
  readonly endpoint: Endpoint;
  readonly remote: Owner;
  readonly side: Side;
  /** The flow took a proof of its own. */
  readonly proven: boolean;
}

/** The one that was made for this flow, and that no other flow took. */
function proofOfFlow(state: State, { endpoint, side, proven }: ProofQuestion): Proof | undefined {
  const key = flowProofKey(endpoint.id, side);
  const proof = state.flowProofs.get(key);
  return proof === undefined || (state.taken.get(key) === proof && !proven) ? undefined : proof;
}

/** One exact proof for the pair and the node, or for the flow; alive, of this epoch. */
export function askProof(state: State, question: ProofQuestion, auth: AuthType): Proven {
  const { endpoint, remote } = question;
  const { now } = state;
  if (auth === 'none') return { until: Number.POSITIVE_INFINITY };
  const no = (refusal: Reason, mendable = false): Proven => ({ refusal, mendable });
  // A host, a node, the world hold no SVID.
  if (remote.kind !== 'local' && remote.kind !== 'node') return no('AUTH_NOT_A_WORKLOAD');
  if (auth === 'always-fail') return no('AUTH_ALWAYS_FAIL');
  const candidates = auth === 'connection' ? [proofOfFlow(state, question)] : state.proofs;
  const proof: Proof | undefined = candidates.find(
    (p) => p?.local === endpoint.identity && p.remote === remote.identity && p.node === remote.node,
  );
  if (proof === undefined) return no('AUTH_REQUIRED', true);
  const over = now >= proof.ends;
  if (proof.refused) return over ? no('AUTH_REQUIRED', true) : no('AUTH_REFUSED');
  if (proof.epoch < state.config.epoch) return no('AUTH_EPOCH', true);
  if (over) return no('AUTH_EXPIRED', true);
  return { until: proof.ends };
}
