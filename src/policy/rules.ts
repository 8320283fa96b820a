/**
 * A network policy as it was read, whatever grammar it was written in: who it selects, whom its rules name, what they allow
 * or deny. The grammars make these, the compiler reads them, nobody else needs to know either.
 */
import type { Prefix } from '../model/address.ts';
import type { Direction } from '../model/datapath.ts';

/** required-connection: `required` with `scope: connection`. */
export type AuthMode = 'disabled' | 'required' | 'required-connection' | 'test-always-fail';
export type Enforcement = 'enforce' | 'observe';

/** One condition on an identity's labels (keys as the identity table has them, without a source). */
export interface Requirement {
  readonly key: string;
  readonly operator: 'In' | 'NotIn' | 'Exists' | 'DoesNotExist';
  /** Empty for Exists and DoesNotExist. NotIn also holds where the label is missing, as in Kubernetes. */
  readonly values: readonly string[];
}

/** All must hold; none at all selects every workload. A policy's own namespace is a requirement like any other. */
export interface Selector {
  readonly requirements: readonly Requirement[];
}

/** As in Cilium: what an address may be besides a workload. `cluster` and `all` include the workloads. */
export type Entity = 'all' | 'cluster' | 'host' | 'none' | 'remote-node' | 'world' | 'world-ipv4' | 'world-ipv6';

export type Peer =
  | { readonly kind: 'workloads'; readonly selector: Selector }
  /** Addresses outside the cluster only: a workload or a node is known by its identity, never by its address. */
  | { readonly kind: 'cidr'; readonly prefix: Prefix; readonly except: readonly Prefix[] }
  | { readonly kind: 'entity'; readonly entity: Entity };

/** IP protocol numbers. For ICMP (1) and ICMPv6 (58) the "port" is the message type, 0 to 255. */
export type PortMatch =
  | { readonly protocol: number; readonly ports: 'all' }
  | { readonly protocol: number; readonly first: number; readonly last: number }
  /** The port that the receiving workload's identity row gives this name. `protocols`: those the rule admits. */
  | { readonly protocols: readonly number[]; readonly name: string };

/** One item of an ingress, egress, ingressDeny or egressDeny list. It speaks of what both its peers and its ports match. */
export interface Rule {
  readonly file: string;
  readonly line: number;
  /** Where it stands in its document, for people: "spec.ingress[0]". */
  readonly path: string;
  readonly direction: Direction;
  readonly action: 'allow' | 'deny';
  /** 'any': everybody, the world and hosts included. An empty list: nobody. */
  readonly peers: readonly Peer[] | 'any';
  /** An empty list: none, so the rule matches nothing. */
  readonly ports: readonly PortMatch[] | 'any';
  /** undefined: the rule names none; a broader rule that does covers it. Never on a deny rule. */
  readonly mode: AuthMode | undefined;
}

export type Subject =
  | { readonly kind: 'workloads'; readonly selector: Selector }
  /** Nodes themselves, by their labels (nodeSelector). */
  | { readonly kind: 'nodes'; readonly selector: Selector };

export interface PolicySpec {
  readonly line: number;
  readonly description: string;
  readonly subject: Subject;
  readonly rules: readonly Rule[];
  /** The direction becomes default deny for those it selects. */
  readonly defaultDeny: Readonly<Record<Direction, boolean>>;
  /** fromRequires, toRequires: further requirements on the workload peers of every allow rule, of any policy, that selects the same
   *  subject in that direction. */
  readonly requires: Readonly<Record<Direction, readonly Requirement[]>>;
}

export const POLICY_KINDS = [
  'CiliumNetworkPolicy',
  'CiliumClusterwideNetworkPolicy',
  'NetworkPolicy',
  'AuthenticationPolicy',
  'ClusterAuthenticationPolicy',
] as const;
export type PolicyKind = (typeof POLICY_KINDS)[number];

export interface Policy {
  readonly file: string;
  readonly line: number;
  readonly kind: PolicyKind;
  readonly name: string;
  /** undefined: clusterwide. */
  readonly namespace: string | undefined;
  /** observe: nothing drops for it; what would is counted and told. */
  readonly enforcement: Enforcement;
  readonly specs: readonly PolicySpec[];
}

/** What stands in a file and does not do what it seems to: layer 7 rules that are passed over, a rule that can match nothing. */
export interface PolicyWarning {
  readonly file: string;
  readonly line: number;
  /** Begins with the field's path, as the message of a problem does. */
  readonly message: string;
  /** More is allowed than the file says. */
  readonly allowsMore?: true;
}

/** The label that says in which namespace a workload is; `default` where it has none. */
export const NAMESPACE_LABEL = 'io.kubernetes.pod.namespace';
export const DEFAULT_NAMESPACE = 'default';
/**
 * Before the keys of the labels of a workload's namespace, as Cilium keeps them. kubernetes.io/metadata.name is not among
 * them: the grammars turn it into NAMESPACE_LABEL.
 */
export const NAMESPACE_LABELS_PREFIX = 'io.cilium.k8s.namespace.labels.';
