/** A network policy as it was read: who it selects, whom its rules name. Labels and namespaces match here and nowhere else. */
import type { Direction } from '../model/datapath.ts';
import type { Labels } from '../model/identity.ts';

export type AuthMode = 'disabled' | 'required' | 'test-always-fail';

/** Every label must be there with this value; none at all selects everything (in the namespace, if there is one). */
export interface Selector {
  /** Keys without their source prefix. */
  readonly labels: Labels;
  /** undefined: any namespace. */
  readonly namespace: string | undefined;
}

export interface PortMatch {
  /** IP protocol number, never 0. */
  readonly protocol: number;
  /** 0: every port. */
  readonly port: number;
}

/** One item of an ingress or egress list. It allows what both its peers and its ports match. */
export interface Rule {
  readonly file: string;
  readonly line: number;
  readonly direction: Direction;
  /** 'any': also what is no workload (the world, hosts). An empty list allows nobody. */
  readonly peers: readonly Selector[] | 'any';
  readonly ports: readonly PortMatch[] | 'any';
  /** undefined: the rule names none; a broader rule that does covers it. */
  readonly mode: AuthMode | undefined;
}

export interface PolicySpec {
  readonly line: number;
  readonly description: string;
  readonly subject: Selector;
  /** A direction without rules is one the policy says nothing of; one with a rule is default deny. */
  readonly ingress: readonly Rule[];
  readonly egress: readonly Rule[];
}

export interface Policy {
  readonly file: string;
  readonly line: number;
  readonly kind: 'CiliumNetworkPolicy' | 'CiliumClusterwideNetworkPolicy';
  readonly name: string;
  /** undefined for clusterwide policies. */
  readonly namespace: string | undefined;
  readonly specs: readonly PolicySpec[];
}

export const NAMESPACE_LABEL = 'io.kubernetes.pod.namespace';
/** Where a policy stands that names no namespace, and a workload whose labels name none (one outside Kubernetes). */
export const DEFAULT_NAMESPACE = 'default';

const SOURCE_PREFIX = /^(?:any|k8s):/;

/** `k8s:app` and `any:app` are `app`: there is one source of labels, the identity server. */
export function plainLabelKey(key: string): string {
  return key.replace(SOURCE_PREFIX, '');
}

export function plainLabels(labels: Labels): Labels {
  const plain: Record<string, string> = { [NAMESPACE_LABEL]: DEFAULT_NAMESPACE };
  for (const [key, value] of Object.entries(labels)) plain[plainLabelKey(key)] = value;
  return plain;
}

/** `labels` are those of plainLabels. */
export function selects(selector: Selector, labels: Labels): boolean {
  if (selector.namespace !== undefined && labels[NAMESPACE_LABEL] !== selector.namespace) return false;
  return Object.entries(selector.labels).every(([key, value]) => Object.hasOwn(labels, key) && labels[key] === value);
}

/** "default/backend" or, clusterwide, "backend". */
export function policyName(policy: Policy): string {
  return policy.namespace === undefined ? policy.name : `${policy.namespace}/${policy.name}`;
}
