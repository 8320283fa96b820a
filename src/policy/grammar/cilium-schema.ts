/** The shape of cilium.io/v2 policies, and which fields of a rule may stand together, as Cilium's own validation has it. */
import { z } from 'zod';
import { prefixContains } from '../../model/address.ts';
import { DEFAULT_NAMESPACE } from '../rules.ts';
import {
  cidrOrAddressText,
  cidrText,
  enforcementField,
  evenIfWrong,
  isFilled,
  isRecord,
  metadata,
  parseCidr,
  passedOver,
  refused,
} from './fields.ts';
import { icmpList, portList } from './ports.ts';
import { entityText, peerSelector, strangeNamespace, workloadSelector } from './selector.ts';

export type L7Handling = 'refuse' | 'ignore-with-warning';

/** Fields of a toPorts item that look into the traffic. */
export const L7_FIELDS = {
  rules: 'layer 7 rules are not enforced here',
  terminatingTLS: 'TLS is not terminated here',
  originatingTLS: 'TLS is not originated here',
  serverNames: 'server names in TLS are not looked at here',
  listener: 'traffic is not sent to an Envoy listener here',
} as const;
export type L7Field = keyof typeof L7_FIELDS;

function l7Field(field: L7Field, handling: L7Handling) {
  if (handling === 'ignore-with-warning') return z.unknown().optional();
  return refused(`${L7_FIELDS[field]}; remove it, or allow the whole port instead by policies.l7: ignore-with-warning`);
}

/** No kind of layer 7 rule named: as if the field were not there. */
function l7Rules(handling: L7Handling) {
  const shape = Object.fromEntries(
    ['http', 'kafka', 'dns', 'l7', 'l7proto'].map((name) => [name, l7Field('rules', handling)]),
  );
  return z.strictObject(shape).optional();
}

const cidrSet = z
  .strictObject({
    cidr: cidrText,
    except: z.array(cidrText).optional(),
    cidrGroupRef: refused('CiliumCIDRGroup objects are not read here; write a cidr for each of its addresses'),
    cidrGroupSelector: refused('CiliumCIDRGroup objects are not read here; write a cidr for each of their addresses'),
  })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value) || typeof value.cidr !== 'string' || !Array.isArray(value.except)) return;
    const outer = parseCidr(value.cidr);
    value.except.forEach((text: unknown, i) => {
      const inner = typeof text === 'string' ? parseCidr(text) : undefined;
      if (outer === undefined || inner === undefined) return;
      if (inner.length >= outer.length && prefixContains(outer, inner.address)) return;
      context.addIssue({ code: 'custom', path: ['except', i], message: `not within ${value.cidr}; correct it` });
    });
  }, evenIfWrong);

const NO_GROUPS = 'groups of a cloud provider are not looked up here; write their addresses as CIDRs';
const NO_NODE_PEERS = 'nodes are not told apart as peers here; write the entities host and remote-node';
const NO_DENY_REQUIRES = 'requirements would make every denial narrower; write them in the rules that allow';

const ingressPeers = {
  fromEndpoints: z.array(peerSelector).optional(),
  fromCIDR: z.array(cidrOrAddressText).optional(),
  fromCIDRSet: z.array(cidrSet).optional(),
  fromEntities: z.array(entityText).optional(),
  fromGroups: refused(NO_GROUPS),
  fromNodes: refused(NO_NODE_PEERS),
};
const egressPeers = {
  toEndpoints: z.array(peerSelector).optional(),
  toCIDR: z.array(cidrOrAddressText).optional(),
  toCIDRSet: z.array(cidrSet).optional(),
  toEntities: z.array(entityText).optional(),
  toServices: refused(
    'services are known to a cluster only; write toEndpoints with the labels of the workloads behind',
  ),
  toFQDNs: refused('names are not resolved here; write the addresses they stand for as toCIDR'),
  toGroups: refused(NO_GROUPS),
  toNodes: refused(NO_NODE_PEERS),
};

const denyTraffic = {
  toPorts: z
    .array(
      z.strictObject({
        ports: portList,
        rules: refused('a deny rule has ports only; remove it'),
      }),
    )
    .optional(),
  icmps: icmpList,
  authentication: refused('what is denied is not authenticated; remove it'),
};

/** scope is a word of our own: nobody else who reads a policy of cilium.io would understand it. */
function authentication({ ownKind }: CiliumScope) {
  const mode = z.enum(['disabled', 'required', 'test-always-fail']);
  if (!ownKind) {
    const scope = refused('not a field of this kind; write the rule in an AuthenticationPolicy').pipe(z.undefined());
    return z.strictObject({ mode, scope });
  }
  return z
    .strictObject({ mode, scope: z.enum(['identity', 'connection']).optional() })
    .superRefine((value, context) => {
      if (value.scope === undefined || value.mode === 'required') return;
      const message = `says what has to be proven, and mode ${value.mode} asks for nothing that could be; remove it`;
      context.addIssue({ code: 'custom', path: ['scope'], message });
    });
}

function allowTraffic(scope: CiliumScope, handling: L7Handling) {
  return {
    toPorts: z
      .array(
        z.strictObject({
          ports: portList,
          rules: l7Rules(handling),
          terminatingTLS: l7Field('terminatingTLS', handling),
          originatingTLS: l7Field('originatingTLS', handling),
          serverNames: l7Field('serverNames', handling),
          listener: l7Field('listener', handling),
        }),
      )
      .optional(),
    icmps: icmpList,
    authentication: authentication(scope).optional(),
  };
}

/** Of these a rule has one: what two of them would mean together Cilium leaves open. */
const PEER_FIELDS: readonly string[] = [...Object.keys(ingressPeers), ...Object.keys(egressPeers)];

function checkTogether(value: unknown, context: z.core.$RefinementCtx): void {
  if (!isRecord(value)) return;
  const complain = (field: string, message: string) => context.addIssue({ code: 'custom', path: [field], message });
  const [first, ...more] = PEER_FIELDS.filter((field) => isFilled(value[field]));
  for (const field of more) complain(field, `cannot stand in one rule with ${first}; write a rule for each`);
  const traffic = ['toPorts', 'icmps'].filter((field) => isFilled(value[field]));
  if (traffic.length === 2) complain('icmps', 'cannot stand in one rule with toPorts; write a rule for each');
  for (const side of ['from', 'to']) {
    if (!isFilled(value[`${side}Requires`]) || isFilled(value[`${side}Endpoints`]) || traffic.length === 0) continue;
    // Cilium would allow everybody on the ports: requirements narrow endpoints only
    complain(`${side}Requires`, `narrows ${side}Endpoints only, and this rule has none; name the peers`);
  }
}

function rules(scope: CiliumScope, handling: L7Handling) {
  const traffic = allowTraffic(scope, handling);
  const requires = z.array(workloadSelector).optional();
  const denied = refused(NO_DENY_REQUIRES);
  const rule = <T extends z.core.$ZodLooseShape>(shape: T) =>
    z
      .array(z.strictObject(shape).superRefine((value: unknown, context) => checkTogether(value, context), evenIfWrong))
      .optional();
  return {
    ingress: rule({ ...ingressPeers, fromRequires: requires, ...traffic }),
    ingressDeny: rule({ ...ingressPeers, fromRequires: denied, ...denyTraffic }),
    egress: rule({ ...egressPeers, toRequires: requires, ...traffic }),
    egressDeny: rule({ ...egressPeers, toRequires: denied, ...denyTraffic }),
  };
}

export interface CiliumScope {
  readonly namespaced: boolean;
  readonly ownKind: boolean;
}

function spec(scope: CiliumScope, handling: L7Handling) {
  const nodeSelector = scope.namespaced
    ? refused('nodes are of no namespace; move the rules to a clusterwide policy').pipe(z.undefined())
    : workloadSelector.optional();
  return z
    .strictObject({
      description: z.string().max(4_096).optional(),
      endpointSelector: workloadSelector.optional(),
      nodeSelector,
      ...rules(scope, handling),
      enableDefaultDeny: z.strictObject({ ingress: z.boolean().optional(), egress: z.boolean().optional() }).optional(),
      enforcement: scope.ownKind
        ? enforcementField
        : refused('not a field of this kind; write the annotation countersign.dev/enforcement').pipe(z.undefined()),
      labels: passedOver,
      log: passedOver,
    })
    .superRefine((value: unknown, context) => {
      if (!isRecord(value)) return;
      const complain = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message });
      const missing = (path: string[], message: string) =>
        context.addIssue({ code: 'custom', path, message, input: undefined });
      const { endpointSelector, nodeSelector } = value;
      if (endpointSelector === undefined && nodeSelector === undefined) {
        missing(['endpointSelector'], 'missing; set it to a map ({} selects every workload)');
      } else if (endpointSelector !== undefined && nodeSelector !== undefined && !scope.namespaced) {
        complain(['nodeSelector'], 'stands beside endpointSelector; write a spec for each');
      }
      const lists = [value.ingress, value.ingressDeny, value.egress, value.egressDeny];
      if (lists.some((list) => list !== undefined && (!Array.isArray(list) || list.length > 0))) return;
      complain([], 'has no rule; write `ingress: [{}]` to let nothing in, `egress: [{}]` to let nothing out');
    }, evenIfWrong);
}

export function ciliumSchema(apiVersion: string, kind: string, scope: CiliumScope, handling: L7Handling) {
  return z
    .strictObject({
      apiVersion: z.literal(apiVersion),
      kind: z.literal(kind),
      metadata: metadata(scope),
      spec: spec(scope, handling).optional(),
      specs: z.array(spec(scope, handling)).optional(),
      description: passedOver,
      status: passedOver,
    })
    .superRefine((value: unknown, context) => {
      if (!isRecord(value)) return;
      const complain = (path: (string | number)[], message: string) =>
        context.addIssue({ code: 'custom', path, message });
      // without an input a misspelt field is told once
      const missing = (path: string[], message: string) =>
        context.addIssue({ code: 'custom', path, message, input: undefined });
      if (
        value.spec === undefined &&
        !isFilled(value.specs) &&
        (value.specs === undefined || Array.isArray(value.specs))
      ) {
        missing(['spec'], 'missing; write spec or specs');
      }
      const specs = Array.isArray(value.specs) ? value.specs : [];
      if (new Set([value.spec, ...specs].filter(isRecord).map((s) => s.enforcement ?? 'enforce')).size > 1) {
        complain(['specs'], 'its specs differ in enforcement, which is of a policy as a whole; write two policies');
      }
      if (!scope.namespaced) return;
      const named = isRecord(value.metadata) ? value.metadata.namespace : undefined;
      const own = typeof named === 'string' ? named : DEFAULT_NAMESPACE;
      const checkNamespace = (s: unknown, path: (string | number)[]) => {
        const strange = isRecord(s) ? strangeNamespace(s.endpointSelector, own) : undefined;
        if (strange === undefined) return;
        const message = `the policy stands in namespace ${own} and selects only there; move it, or make it clusterwide`;
        complain([...path, 'endpointSelector', ...strange], message);
      };
      checkNamespace(value.spec, ['spec']);
      specs.forEach((s: unknown, i) => {
        checkNamespace(s, ['specs', i]);
      });
    }, evenIfWrong);
}

type Document = z.infer<ReturnType<typeof ciliumSchema>>;
export type CiliumDocument = Document;
export type CiliumSpec = NonNullable<Document['spec']>;
