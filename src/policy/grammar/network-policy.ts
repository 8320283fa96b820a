/** NetworkPolicy of networking.k8s.io/v1. */
import { z } from 'zod';
import { type FieldPath, formatPath, type YamlDocument } from '../../base/config-file.ts';
import { prefixContains } from '../../model/address.ts';
import type { Direction } from '../../model/datapath.ts';
import { DEFAULT_NAMESPACE, type Peer, type Policy, type PolicyWarning, type PortMatch, type Rule } from '../rules.ts';
import type { Lowered } from './cilium.ts';
import { cidrText, enforcementOf, evenIfWrong, isFilled, isRecord, metadata, parseCidr, passedOver } from './fields.ts';
import { isPortName } from './ports.ts';
import { inNamespace, kubernetesSelector, namespaceLabelKey, plainKubernetesKey, requirementsOf } from './selector.ts';

const PROTOCOLS = { TCP: 6, UDP: 17, SCTP: 132 } as const;

const port = z
  .strictObject({
    port: z
      .union([z.number().int().min(1).max(65_535), z.string()])
      .superRefine((value, context) => {
        if (typeof value === 'number' || (isPortName(value) && value === value.toLowerCase())) return;
        const message = /^\d+$/.test(value)
          ? 'a number in quotes is read as a name; write it without quotes'
          : 'not the name of a port; use at most 15 lower-case letters, digits and single hyphens';
        context.addIssue({ code: 'custom', message });
      })
      .optional(),
    endPort: z.number().int().min(1).max(65_535).optional(),
    protocol: z.enum(['TCP', 'UDP', 'SCTP']).optional(),
  })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value) || typeof value.endPort !== 'number') return;
    const complain = (message: string) => context.addIssue({ code: 'custom', path: ['endPort'], message });
    if (typeof value.port !== 'number') complain('a range begins with a number; set port to one');
    else if (value.endPort < value.port) complain(`less than port ${value.port}; exchange the two`);
  }, evenIfWrong);

const ipBlock = z
  .strictObject({ cidr: cidrText, except: z.array(cidrText).optional() })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value) || typeof value.cidr !== 'string' || !Array.isArray(value.except)) return;
    const outer = parseCidr(value.cidr);
    value.except.forEach((text: unknown, i) => {
      const inner = typeof text === 'string' ? parseCidr(text) : undefined;
      if (outer === undefined || inner === undefined) return;
      if (inner.length > outer.length && prefixContains(outer, inner.address)) return;
      const message = `must be smaller than ${value.cidr} and within it; correct it`;
      context.addIssue({ code: 'custom', path: ['except', i], message });
    });
  }, evenIfWrong);

const peer = z
  .strictObject({
    podSelector: kubernetesSelector.optional(),
    namespaceSelector: kubernetesSelector.optional(),
    ipBlock: ipBlock.optional(),
  })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value)) return;
    const { podSelector, namespaceSelector, ipBlock } = value;
    const selects = podSelector !== undefined || namespaceSelector !== undefined;
    if (ipBlock === undefined && !selects) {
      const message = 'names no peer; write podSelector, namespaceSelector or ipBlock';
      context.addIssue({ code: 'custom', message });
    } else if (ipBlock !== undefined && selects) {
      const message = 'cannot stand in one peer with a selector; write a peer for each';
      context.addIssue({ code: 'custom', path: ['ipBlock'], message });
    }
  }, evenIfWrong);
type PeerDocument = z.infer<typeof peer>;

const ports = z.array(port).optional();
const spec = z.strictObject({
  podSelector: kubernetesSelector.optional(),
  policyTypes: z
    .array(z.enum(['Ingress', 'Egress']))
    .max(2)
    .optional(),
  ingress: z.array(z.strictObject({ from: z.array(peer).optional(), ports })).optional(),
  egress: z.array(z.strictObject({ to: z.array(peer).optional(), ports })).optional(),
});

export const networkPolicySchema = z.strictObject({
  apiVersion: z.literal('networking.k8s.io/v1'),
  kind: z.literal('NetworkPolicy'),
  metadata: metadata({ namespaced: true, ownKind: false }),
  spec,
  status: passedOver,
});
export type NetworkPolicyDocument = z.infer<typeof networkPolicySchema>;

const TYPES: Readonly<Record<Direction, 'Ingress' | 'Egress'>> = { ingress: 'Ingress', egress: 'Egress' };

export function lowerNetworkPolicy(yaml: YamlDocument, value: NetworkPolicyDocument): Lowered {
  const { metadata, spec } = value;
  const namespace = metadata.namespace ?? DEFAULT_NAMESPACE;
  const warnings: PolicyWarning[] = [];
  // Without policyTypes: ingress always, egress if there is an egress rule.
  const written = spec.policyTypes ?? [];
  const inForce = (direction: Direction) =>
    written.length > 0 ? written.includes(TYPES[direction]) : direction === 'ingress' || isFilled(spec.egress);
  const rulesOf = (direction: Direction, items: readonly RuleDocument[]): Rule[] => {
    const path = ['spec', direction];
    if (items.length > 0 && !inForce(direction)) {
      const message = `${formatPath(path)}: has no effect, because policyTypes has no ${TYPES[direction]}; add it, or remove the rules`;
      warnings.push({ file: yaml.file, line: yaml.lineOf(path), message });
      return [];
    }
    return items.map((item, i) => ruleOf(yaml, [...path, i], direction, namespace, item));
  };
  const policy: Policy = {
    file: yaml.file,
    line: yaml.line,
    kind: 'NetworkPolicy',
    name: metadata.name,
    namespace,
    enforcement: enforcementOf(metadata.annotations),
    specs: [
      {
        line: yaml.lineOf(['spec']),
        description: '',
        subject: {
          kind: 'workloads',
          selector: {
            requirements: [inNamespace(namespace), ...requirementsOf(spec.podSelector ?? {}, plainKubernetesKey)],
          },
        },
        rules: [
          ...rulesOf(
            'ingress',
            (spec.ingress ?? []).map(({ from, ports }) => ({ peers: from, ports })),
          ),
          ...rulesOf(
            'egress',
            (spec.egress ?? []).map(({ to, ports }) => ({ peers: to, ports })),
          ),
        ],
        defaultDeny: { ingress: inForce('ingress'), egress: inForce('egress') },
        requires: { ingress: [], egress: [] },
      },
    ],
  };
  return { policy, warnings };
}

interface RuleDocument {
  readonly peers: readonly PeerDocument[] | undefined;
  readonly ports: z.infer<typeof ports>;
}

/** Unlike Cilium's: a list that is empty or not there is no restriction. */
function ruleOf(
  yaml: YamlDocument,
  path: FieldPath,
  direction: Direction,
  namespace: string,
  rule: RuleDocument,
): Rule {
  const { peers = [], ports = [] } = rule;
  return {
    file: yaml.file,
    line: yaml.lineOf(path),
    path: formatPath(path),
    direction,
    action: 'allow',
    peers: peers.length === 0 ? 'any' : peers.map((p) => peerOf(p, namespace)),
    ports: ports.length === 0 ? 'any' : ports.map(portOf),
    mode: undefined,
  };
}

function peerOf({ podSelector = {}, namespaceSelector, ipBlock }: PeerDocument, namespace: string): Peer {
  if (ipBlock !== undefined) {
    const except = (ipBlock.except ?? []).map((text) => parseCidr(text)!);
    return { kind: 'cidr', prefix: parseCidr(ipBlock.cidr)!, except };
  }
  const namespaces =
    namespaceSelector === undefined ? [inNamespace(namespace)] : requirementsOf(namespaceSelector, namespaceLabelKey);
  const requirements = [...namespaces, ...requirementsOf(podSelector, plainKubernetesKey)];
  return { kind: 'workloads', selector: { requirements } };
}

function portOf({ port, endPort, protocol = 'TCP' }: NonNullable<RuleDocument['ports']>[number]): PortMatch {
  const number = PROTOCOLS[protocol];
  if (port === undefined) return { protocol: number, ports: 'all' };
  if (typeof port === 'string') return { protocols: [number], name: port };
  return { protocol: number, first: port, last: endPort ?? port };
}
