/** Label selectors: the labels' sources as Cilium reads them, the namespace a selector is bound to, the entities it may name. */
import { z } from 'zod';
import { err, ok, type Result } from '../../base/errors.ts';
import {
  type Entity,
  NAMESPACE_LABEL,
  NAMESPACE_LABELS_PREFIX,
  type Peer,
  type Requirement,
  type Selector,
} from '../rules.ts';
import { evenIfWrong, isRecord } from './fields.ts';

const LABEL_KEY =
  /^(?:(?=.{1,253}\/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?\/)?(?=.{1,63}$)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
const LABEL_VALUE = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/;

/** Kubernetes sets this label on every namespace to its name. */
const NAMESPACE_NAME_LABEL = 'kubernetes.io/metadata.name';

export const ENTITIES: readonly Entity[] = [
  'all',
  'cluster',
  'host',
  'none',
  'remote-node',
  'world',
  'world-ipv4',
  'world-ipv6',
];

const ENTITY_ADVICE: Readonly<Record<string, string>> = {
  health: 'there are no health endpoints here; the node itself is host',
  ingress: 'there is no ingress proxy here; select the workloads of yours by their labels',
  init: 'a workload has its identity from its first packet on; remove it',
  'kube-apiserver':
    'only a cluster knows where its API server is; write its addresses as CIDRs, or remote-node and host',
  unmanaged: 'what has no identity is known by its address only; write CIDRs',
};

/** Why a name is no entity here, with what to write instead; undefined if it is one. */
export function entityProblem(name: string): string | undefined {
  if ((ENTITIES as readonly string[]).includes(name)) return undefined;
  const advice = Object.hasOwn(ENTITY_ADVICE, name) ? ENTITY_ADVICE[name] : undefined;
  if (advice !== undefined) return `the entity ${name} is not known without a cluster: ${advice}`;
  return `cannot be ${JSON.stringify(name.slice(0, 64))}; use ${ENTITIES.join(', ')}`;
}

export const entityText = z.string().superRefine((name, context) => {
  const message = entityProblem(name);
  if (message !== undefined) context.addIssue({ code: 'custom', message });
});

/** `reserved`: the name of an entity. */
interface LabelKey {
  readonly reserved: boolean;
  readonly name: string;
}

/** Cilium: `source:key`; `$x` and `reserved.x` are `reserved:x`; no source is any source. There is one here, the identity server. */
function parseLabelKey(text: string): Result<LabelKey, string> {
  if (text.startsWith('$')) return ok({ reserved: true, name: text.slice(1) });
  const colon = text.indexOf(':');
  if (colon < 0) {
    if (text.startsWith('reserved.')) return ok({ reserved: true, name: text.slice('reserved.'.length) });
    return ok({ reserved: false, name: text });
  }
  const source = text.slice(0, colon);
  const name = text.slice(colon + 1);
  if (source === 'reserved') return ok({ reserved: true, name });
  if (source === 'k8s' || source === 'any' || source === '') return ok({ reserved: false, name });
  if (source === 'cidr') return err('addresses are not labels here; write fromCIDR or toCIDR');
  return err('this label source is not known here; use k8s:, any: or no prefix');
}

function isLabelKey(name: string): boolean {
  return LABEL_KEY.test(name.startsWith(NAMESPACE_LABELS_PREFIX) ? name.slice(NAMESPACE_LABELS_PREFIX.length) : name);
}

/**
 * cilium: keys have sources; kubernetes: they have none. Where a selector stands for peers a reserved label may be all of it,
 * and means the entity.
 */
type Role = 'cilium' | 'cilium-peer' | 'kubernetes';

function keyProblem(role: Role, text: string): string | undefined {
  const notAKey = 'not a label key; use letters, digits, ".", "-" and "_", with at most one DNS prefix and "/"';
  if (role === 'kubernetes') return LABEL_KEY.test(text) ? undefined : notAKey;
  const parsed = parseLabelKey(text);
  if (!parsed.ok) return parsed.error;
  const { reserved, name } = parsed.value;
  if (!reserved) return isLabelKey(name) ? undefined : notAKey;
  const message = entityProblem(name);
  if (message !== undefined) return message;
  return role === 'cilium-peer'
    ? undefined
    : 'this selects workloads or nodes by their own labels; remove the reserved label';
}

const NOT_A_VALUE = 'not a label value; use at most 63 letters, digits, ".", "-" and "_"';

const expression = z
  .strictObject({
    key: z.string(),
    operator: z.enum(['In', 'NotIn', 'Exists', 'DoesNotExist']),
    values: z
      .array(
        z.string().superRefine((text, context) => {
          if (!LABEL_VALUE.test(text)) context.addIssue({ code: 'custom', message: NOT_A_VALUE });
        }),
      )
      .optional(),
  })
  .superRefine(({ operator, values }, context) => {
    const some = values !== undefined && values.length > 0;
    const needed = operator === 'In' || operator === 'NotIn';
    if (some === needed) return;
    const message = needed ? `${operator} needs values; name at least one` : `${operator} has no values; remove them`;
    context.addIssue({ code: 'custom', path: ['values'], message });
  });

function selectorSchema(role: Role) {
  return z
    .strictObject({
      matchLabels: z.record(z.string(), z.string()).optional(),
      matchExpressions: z.array(expression).optional(),
    })
    .superRefine((value: unknown, context) => {
      if (!isRecord(value)) return;
      const complain = (path: (string | number)[], message: string) =>
        context.addIssue({ code: 'custom', path, message });
      const { matchLabels, matchExpressions } = value;
      const labels = isRecord(matchLabels) ? Object.entries(matchLabels) : [];
      const expressions = Array.isArray(matchExpressions) ? matchExpressions : [];
      for (const [key, text] of labels) {
        const message = keyProblem(role, key);
        if (message !== undefined) complain(['matchLabels', key], message);
        else if (typeof text === 'string' && !LABEL_VALUE.test(text)) complain(['matchLabels', key], NOT_A_VALUE);
      }
      expressions.forEach((item: unknown, i) => {
        if (!isRecord(item) || typeof item.key !== 'string') return;
        const message = keyProblem(role, item.key);
        if (message !== undefined) complain(['matchExpressions', i, 'key'], message);
      });
      if (role === 'cilium-peer') reservedProblems(labels, expressions, complain);
    }, evenIfWrong);
}

/** An entity has no labels, so a selector that names one names nothing else. */
function reservedProblems(
  labels: readonly (readonly [string, unknown])[],
  expressions: readonly unknown[],
  complain: (path: (string | number)[], message: string) => void,
): void {
  const alone = labels.length + expressions.length === 1;
  const check = (path: (string | number)[], key: string, plain: boolean) => {
    if (!isReserved(key)) return;
    if (!alone) complain(path, 'an entity has no other labels; write a selector for each');
    else if (!plain) complain(path, 'an entity is named or not; write the label with an empty value');
  };
  for (const [key, value] of labels) check(['matchLabels', key], key, value === '');
  expressions.forEach((item, i) => {
    if (!isRecord(item) || typeof item.key !== 'string') return;
    check(['matchExpressions', i, 'key'], item.key, item.operator === 'Exists');
  });
}

function isReserved(key: string): boolean {
  const parsed = parseLabelKey(key);
  return parsed.ok && parsed.value.reserved;
}

export const workloadSelector = selectorSchema('cilium');
export const peerSelector = selectorSchema('cilium-peer');
export const kubernetesSelector = selectorSchema('kubernetes');
export type SelectorDocument = z.infer<typeof workloadSelector>;

/** Without the sources; the label that carries a namespace's name is the namespace itself. */
function plainKey(text: string): string {
  const parsed = parseLabelKey(text);
  const name = parsed.ok ? parsed.value.name : text;
  return name === NAMESPACE_LABELS_PREFIX + NAMESPACE_NAME_LABEL ? NAMESPACE_LABEL : name;
}

export function requirementsOf(value: SelectorDocument, toKey: (text: string) => string = plainKey): Requirement[] {
  const labels = Object.entries(value.matchLabels ?? {}).map(
    ([key, text]): Requirement => ({ key: toKey(key), operator: 'In', values: [text] }),
  );
  const expressions = (value.matchExpressions ?? []).map(
    ({ key, operator, values = [] }): Requirement => ({ key: toKey(key), operator, values: [...new Set(values)] }),
  );
  return [...labels, ...expressions];
}

export function inNamespace(name: string): Requirement {
  return { key: NAMESPACE_LABEL, operator: 'In', values: [name] };
}

/** Those the policy applies to: always in its own namespace, if it has one. */
export function subjectSelector(value: SelectorDocument, namespace: string | undefined): Selector {
  const requirements = requirementsOf(value).filter((r) => !isOwnNamespace(r, namespace));
  return { requirements: namespace === undefined ? requirements : [inNamespace(namespace), ...requirements] };
}

/** Peers of a namespaced policy are of its namespace, unless the selector says something of namespaces itself. */
export function peerRequirements(value: SelectorDocument, namespace: string | undefined): Requirement[] {
  const requirements = requirementsOf(value);
  const speaksOfNamespaces = requirements.some(
    ({ key }) => key === NAMESPACE_LABEL || key.startsWith(NAMESPACE_LABELS_PREFIX),
  );
  return namespace === undefined || speaksOfNamespaces ? requirements : [inNamespace(namespace), ...requirements];
}

export function peerOfSelector(value: SelectorDocument, namespace: string | undefined): Peer {
  const [key] = [...Object.keys(value.matchLabels ?? {}), ...(value.matchExpressions ?? []).map((e) => e.key)];
  const parsed = key === undefined ? undefined : parseLabelKey(key);
  if (parsed?.ok && parsed.value.reserved) return { kind: 'entity', entity: parsed.value.name as Entity };
  return { kind: 'workloads', selector: { requirements: peerRequirements(value, namespace) } };
}

/** In a namespaced policy: a requirement on another namespace, which it would never meet. */
export function strangeNamespace(value: unknown, namespace: string): readonly (string | number)[] | undefined {
  if (!isRecord(value) || !isRecord(value.matchLabels)) return undefined;
  const found = Object.entries(value.matchLabels).find(
    ([key, text]) => plainKey(key) === NAMESPACE_LABEL && text !== namespace,
  );
  return found === undefined ? undefined : ['matchLabels', found[0]];
}

function isOwnNamespace({ key, operator, values }: Requirement, namespace: string | undefined): boolean {
  return key === NAMESPACE_LABEL && operator === 'In' && values.length === 1 && values[0] === namespace;
}

/** Kubernetes: keys have no source. A namespaceSelector's labels stand on the identity under a prefix, as with Cilium. */
export const plainKubernetesKey = (key: string): string => key;
export const namespaceLabelKey = (key: string): string =>
  key === NAMESPACE_NAME_LABEL ? NAMESPACE_LABEL : NAMESPACE_LABELS_PREFIX + key;
