/** Documents of the Cilium grammar, and of our own kinds that are written in it, to policies. */
import { type FieldPath, formatPath, type YamlDocument } from '../../base/config-file.ts';
import type { Direction } from '../../model/datapath.ts';
import {
  DEFAULT_NAMESPACE,
  type Entity,
  type Peer,
  type Policy,
  type PolicyKind,
  type PolicySpec,
  type PolicyWarning,
  type PortMatch,
  type Requirement,
  type Rule,
} from '../rules.ts';
import { type CiliumDocument, type CiliumSpec, L7_FIELDS, type L7Field } from './cilium-schema.ts';
import { enforcementOf, isRecord, parseCidr, parseCidrOrAddress } from './fields.ts';
import { icmpMatches, portMatches, portsText } from './ports.ts';
import {
  peerOfSelector,
  peerRequirements,
  requirementsOf,
  type SelectorDocument,
  subjectSelector,
} from './selector.ts';

type Warn = (path: FieldPath, message: string, more?: Pick<PolicyWarning, 'allowsMore'>) => void;

export interface Lowered {
  readonly policy: Policy;
  readonly warnings: readonly PolicyWarning[];
}

export function lowerCilium(yaml: YamlDocument, kind: PolicyKind, namespaced: boolean, value: CiliumDocument): Lowered {
  const { name, annotations } = value.metadata;
  const namespace = namespaced ? (value.metadata.namespace ?? DEFAULT_NAMESPACE) : undefined;
  const warnings: PolicyWarning[] = [];
  const warn: Warn = (path, message, more = {}) => {
    warnings.push({ file: yaml.file, line: yaml.lineOf(path), message: `${formatPath(path)}: ${message}`, ...more });
  };
  const written: [CiliumSpec, FieldPath][] = (value.specs ?? []).map((s, i) => [s, ['specs', i]]);
  if (value.spec !== undefined) written.unshift([value.spec, ['spec']]);
  const specs = written.map(([spec, path]) => new SpecReader(yaml, namespace, path, warn).read(spec));
  const own = written[0]?.[0].enforcement;
  const policy: Policy = {
    file: yaml.file,
    line: yaml.line,
    kind,
    name,
    namespace,
    enforcement: own ?? enforcementOf(annotations),
    specs,
  };
  return { policy, warnings };
}

/** A rule's peer fields without their direction. */
interface Peers {
  readonly endpoints: readonly SelectorDocument[] | undefined;
  readonly cidr: readonly string[] | undefined;
  readonly cidrSet: readonly { readonly cidr: string; readonly except?: readonly string[] | undefined }[] | undefined;
  readonly entities: readonly string[] | undefined;
}

type IngressRule = NonNullable<CiliumSpec['ingress']>[number] | NonNullable<CiliumSpec['ingressDeny']>[number];
type EgressRule = NonNullable<CiliumSpec['egress']>[number] | NonNullable<CiliumSpec['egressDeny']>[number];
type Traffic = Pick<NonNullable<CiliumSpec['ingress']>[number], 'toPorts' | 'icmps'>;

function ingressPeers({ fromEndpoints, fromCIDR, fromCIDRSet, fromEntities }: IngressRule): Peers {
  return { endpoints: fromEndpoints, cidr: fromCIDR, cidrSet: fromCIDRSet, entities: fromEntities };
}

function egressPeers({ toEndpoints, toCIDR, toCIDRSet, toEntities }: EgressRule): Peers {
  return { endpoints: toEndpoints, cidr: toCIDR, cidrSet: toCIDRSet, entities: toEntities };
}

function modeOf(authentication: NonNullable<CiliumSpec['ingress']>[number]['authentication']): Rule['mode'] {
  if (authentication === undefined) return undefined;
  return authentication.scope === 'connection' ? 'required-connection' : authentication.mode;
}

class SpecReader {
  readonly #yaml: YamlDocument;
  readonly #namespace: string | undefined;
  readonly #path: FieldPath;
  readonly #warn: Warn;

  constructor(yaml: YamlDocument, namespace: string | undefined, path: FieldPath, warn: Warn) {
    this.#yaml = yaml;
    this.#namespace = namespace;
    this.#path = path;
    this.#warn = warn;
  }

  read(spec: CiliumSpec): PolicySpec {
    const { ingress = [], ingressDeny = [], egress = [], egressDeny = [], enableDefaultDeny, nodeSelector } = spec;
    const rules = [
      ...ingress.map((r, i) => this.#allow('ingress', ['ingress', i], ingressPeers(r), r, modeOf(r.authentication))),
      ...egress.map((r, i) => this.#allow('egress', ['egress', i], egressPeers(r), r, modeOf(r.authentication))),
      ...ingressDeny.map((r, i) => this.#rule('ingress', 'deny', ['ingressDeny', i], ingressPeers(r), r, undefined)),
      ...egressDeny.map((r, i) => this.#rule('egress', 'deny', ['egressDeny', i], egressPeers(r), r, undefined)),
    ];
    return {
      line: this.#yaml.lineOf(this.#path),
      description: spec.description ?? '',
      subject:
        nodeSelector === undefined
          ? { kind: 'workloads', selector: subjectSelector(spec.endpointSelector ?? {}, this.#namespace) }
          : { kind: 'nodes', selector: { requirements: requirementsOf(nodeSelector) } },
      rules,
      // A list without items is as one that is not there.
      defaultDeny: {
        ingress: enableDefaultDeny?.ingress ?? ingress.length + ingressDeny.length > 0,
        egress: enableDefaultDeny?.egress ?? egress.length + egressDeny.length > 0,
      },
      requires: {
        ingress: this.#requires(ingress.flatMap(({ fromRequires = [] }) => fromRequires)),
        egress: this.#requires(egress.flatMap(({ toRequires = [] }) => toRequires)),
      },
    };
  }

  #requires(selectors: readonly SelectorDocument[]): Requirement[] {
    return selectors.flatMap((selector) => peerRequirements(selector, this.#namespace));
  }

  #allow(direction: Direction, at: FieldPath, peers: Peers, traffic: Traffic, mode: Rule['mode']): Rule {
    traffic.toPorts?.forEach((item, i) => {
      for (const field of Object.keys(L7_FIELDS) as L7Field[]) {
        this.#warnOfL7([...this.#path, ...at, 'toPorts', i, field], field, item[field], item.ports ?? []);
      }
    });
    return this.#rule(direction, 'allow', at, peers, traffic, mode);
  }

  #rule(
    direction: Direction,
    action: Rule['action'],
    at: FieldPath,
    peers: Peers,
    traffic: Pick<Traffic, 'icmps'> & {
      toPorts?: readonly Pick<NonNullable<Traffic['toPorts']>[number], 'ports'>[] | undefined;
    },
    mode: Rule['mode'],
  ): Rule {
    const path = [...this.#path, ...at];
    const ports = portsOf(traffic);
    const rule: Rule = {
      file: this.#yaml.file,
      line: this.#yaml.lineOf(path),
      path: formatPath(path),
      direction,
      action,
      peers: this.#peers(peers, ports),
      ports,
      mode,
    };
    if (action === 'deny' && (rule.peers.length === 0 || ports.length === 0)) {
      this.#warn(path, 'denies nothing, because it names no peer or no port; name them, or remove the rule');
    }
    return rule;
  }

  #peers({ endpoints, cidr, cidrSet, entities }: Peers, ports: Rule['ports']): Rule['peers'] {
    const lists = [endpoints, cidr, cidrSet, entities];
    if (lists.some((list) => list?.length === 0)) return [];
    // A rule that names neither peers nor ports is for nobody: this is how default deny alone is written.
    if (lists.every((list) => list === undefined)) return ports === 'any' ? [] : 'any';
    return [
      ...(endpoints ?? []).map((selector) => peerOfSelector(selector, this.#namespace)),
      ...(cidr ?? []).map((text): Peer => ({ kind: 'cidr', prefix: parseCidrOrAddress(text)!, except: [] })),
      ...(cidrSet ?? []).map(
        ({ cidr, except = [] }): Peer => ({
          kind: 'cidr',
          prefix: parseCidr(cidr)!,
          except: except.map((text) => parseCidr(text)!),
        }),
      ),
      ...(entities ?? []).map((entity): Peer => ({ kind: 'entity', entity: entity as Entity })),
    ];
  }

  #warnOfL7(path: FieldPath, field: L7Field, value: unknown, ports: Parameters<typeof portsText>[0]): void {
    if (value === undefined || (field === 'rules' && isRecord(value) && Object.keys(value).length === 0)) return;
    const whole = ports.length === 0 ? 'its ports' : `port ${portsText(ports)}`;
    const message = `${L7_FIELDS[field]}: all traffic of ${whole} is allowed, whatever this field would refuse`;
    this.#warn(path, message, { allowsMore: true });
  }
}

/** An item without ports, or one without fields, matches nothing. */
function portsOf({
  toPorts = [],
  icmps = [],
}: {
  toPorts?: readonly { ports?: Parameters<typeof portMatches>[0] | undefined }[] | undefined;
  icmps?: Traffic['icmps'];
}): readonly PortMatch[] | 'any' {
  if (toPorts.length === 0 && icmps.length === 0) return 'any';
  return [...toPorts.flatMap(({ ports = [] }) => portMatches(ports)), ...icmpMatches(icmps)];
}
