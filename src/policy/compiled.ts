/** What the compiler makes of policies: tables for the kernel, decisions for everybody else. Shapes only. */
import type { AuthType, Direction, PolicyDelta, PolicyTables } from '../model/datapath.ts';
import type { Labels } from '../model/identity.ts';
import type { IpAddress, SecurityIdentity } from '../model/ids.ts';
import type { Enforcement } from './rules.ts';

export type RequiredAuthType = Exclude<AuthType, 'none'>;

export interface Outcome {
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
  /** Index into CompiledPolicy.rules; 0: no rule decided (nothing selects the endpoint, or nothing allows it). */
  readonly rule: number;
}

/** In force; `observed` if the policies that only observe would make it another verdict or another authentication. */
export interface Verdict extends Outcome {
  readonly observed?: Outcome;
}

export interface Decision extends Verdict {
  /** As the sender's hook enforces it: its own policy's verdict with the stronger authentication of both sides. */
  readonly egress: Verdict;
  readonly ingress: Verdict;
}

/** What `explain` and the audit log say of a rule. */
export interface PolicyRule {
  readonly file: string;
  readonly line: number;
  /** Where it stands in its document: "spec.ingress[0]". */
  readonly path: string;
  /** "namespace/name", or the name alone of a clusterwide policy. */
  readonly policy: string;
  readonly enforcement: Enforcement;
  readonly direction: Direction;
  readonly action: 'allow' | 'deny';
  readonly description: string;
}

export interface RequiredPair {
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
  readonly authType: RequiredAuthType;
}

export interface CompileOptions {
  /** Labels of this node, for policies with a nodeSelector. undefined: none selects it. */
  readonly nodeLabels?: Labels | undefined;
}

export interface CompiledPolicy {
  /** Made anew when nobody holds it any more; entryCount says how long it is without making it. */
  readonly tables: PolicyTables;
  readonly entryCount: number;
  /** Index 0 is unused, so that 0 can mean "no rule". */
  readonly rules: readonly PolicyRule[];
  /** By direction: some policy selects this node itself. */
  readonly selectsHost: Readonly<Record<Direction, boolean>>;
  /**
   * `from` opens a flow to `to`; either may be reserved (host, world, remote-node) or a CIDR identity. Protocols and ports
   * as in the kernel: the port of ICMP is the message's type, of a protocol without ports it is 0.
   */
  decide(from: SecurityIdentity, to: SecurityIdentity, protocol: number, port: number): Decision;
  /** What traffic between the two, in either direction, needs. Empty: policy denies it all or requires no proof. Fast. */
  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly RequiredAuthType[];
  /** Workloads that some endpoint here must authenticate with. An upper bound: one that denies it all itself may be among them. */
  requiredPeers(authType: RequiredAuthType): readonly SecurityIdentity[];
  /** Pairs of a local and any workload that some traffic both sides allow needs a proof for. All of them: may be millions. */
  requiredPairs(): IterableIterator<RequiredPair>;
  /** Of an address outside the cluster: the narrowest CIDR identity, else the world's. */
  identityOfAddress(address: IpAddress): SecurityIdentity;
}

export interface Recompiled {
  readonly compiled: CompiledPolicy;
  /** Any number of its writes, taken in order, allows nothing that neither the policy before nor the one after allows. */
  readonly delta: PolicyDelta;
}
