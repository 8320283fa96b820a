/** YAML documents to policies. The grammar is the subset of cilium.io/v2 below; any other field is refused by name, never ignored. */
import { z } from 'zod';
import {
  checkSchema,
  type FieldPath,
  type Problem,
  parseYamlDocuments,
  problemsError,
  type YamlDocument,
} from '../base/config-file.ts';
import { CountersignError } from '../base/errors.ts';
import type { Direction } from '../model/datapath.ts';
import {
  DEFAULT_NAMESPACE,
  NAMESPACE_LABEL,
  type Policy,
  type PolicySpec,
  type PortMatch,
  plainLabelKey,
  type Rule,
  type Selector,
} from './policy.ts';

/** ANY means every protocol that has ports. */
const PROTOCOLS: Readonly<Record<string, readonly number[]>> = { TCP: [6], UDP: [17], SCTP: [132], ANY: [6, 17, 132] };

const LABEL_KEY =
  /^(?:(?=.{1,253}\/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?\/)?(?=.{1,63}$)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
const LABEL_VALUE = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/;
const OBJECT_NAME = /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/;
const NAMESPACE_NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

const labels = z.record(z.string(), z.string()).superRefine((value, context) => {
  const seen = new Map<string, string>();
  for (const [key, text] of Object.entries(value)) {
    const complain = (message: string) => context.addIssue({ code: 'custom', path: [key], message });
    const plain = plainLabelKey(key);
    if (plain.includes(':')) {
      complain('this label source is not supported yet; use k8s:, any: or no prefix');
    } else if (!LABEL_KEY.test(plain)) {
      complain('not a label key; use letters, digits, ".", "-" and "_", with at most one DNS prefix and "/"');
    } else if (!LABEL_VALUE.test(text)) {
      complain('not a label value; use at most 63 letters, digits, ".", "-" and "_"');
    } else if (seen.has(plain)) {
      complain(`the same label as ${seen.get(plain)}; keep one of them`);
    }
    seen.set(plain, key);
  }
});

const selector = z.strictObject({ matchLabels: labels.optional() });

const port = z.strictObject({
  port: z.string().superRefine((text, context) => {
    if (/^\d{1,5}$/.test(text) && Number(text) <= 65_535) return;
    const message = /^[a-z][a-z0-9-]*$/i.test(text)
      ? 'named ports are not supported yet; write the number'
      : 'not a port; write a number from 0 (every port) to 65535, in quotes';
    context.addIssue({ code: 'custom', message });
  }),
  protocol: z
    .string()
    .optional()
    .superRefine((text, context) => {
      if (text === undefined || Object.hasOwn(PROTOCOLS, text)) return;
      const message = `cannot be ${JSON.stringify(text.slice(0, 32))}; use ${Object.keys(PROTOCOLS).join(', ')}`;
      context.addIssue({ code: 'custom', message });
    }),
});

const ports = z.strictObject({ ports: z.array(port).min(1).max(40) });
const authentication = z.strictObject({ mode: z.enum(['disabled', 'required', 'test-always-fail']) });
const commonRule = { toPorts: z.array(ports).optional(), authentication: authentication.optional() };
const ingressRule = z.strictObject({ fromEndpoints: z.array(selector).optional(), ...commonRule });
const egressRule = z.strictObject({ toEndpoints: z.array(selector).optional(), ...commonRule });

const spec = z
  .strictObject({
    description: z.string().max(4_096).optional(),
    endpointSelector: selector,
    ingress: z.array(ingressRule).optional(),
    egress: z.array(egressRule).optional(),
  })
  .superRefine((value, context) => {
    if ((value.ingress?.length ?? 0) + (value.egress?.length ?? 0) > 0) return;
    const message = 'has neither an ingress nor an egress rule; write `ingress: [{}]` to let nothing in';
    context.addIssue({ code: 'custom', message });
  });

const named = (pattern: RegExp) =>
  z.string().superRefine((text, context) => {
    if (!pattern.test(text)) {
      context.addIssue({ code: 'custom', message: 'not a Kubernetes name; use lower-case letters, digits and "-"' });
    }
  });

const document = z
  .strictObject({
    apiVersion: z.literal('cilium.io/v2'),
    kind: z.enum(['CiliumNetworkPolicy', 'CiliumClusterwideNetworkPolicy']),
    metadata: z.strictObject({
      name: named(OBJECT_NAME),
      namespace: named(NAMESPACE_NAME).optional(),
      labels: z.record(z.string(), z.string()).optional(),
      annotations: z.record(z.string(), z.string()).optional(),
    }),
    spec: spec.optional(),
    specs: z.array(spec).min(1).optional(),
  })
  .superRefine((value, context) => {
    const complain = (path: (string | number)[], message: string) =>
      context.addIssue({ code: 'custom', path, message });
    if (value.spec === undefined && value.specs === undefined) complain(['spec'], 'missing; write spec or specs');
    if (value.kind === 'CiliumClusterwideNetworkPolicy') {
      if (value.metadata.namespace !== undefined) {
        complain(['metadata', 'namespace'], 'a clusterwide policy has no namespace; remove it');
      }
      return;
    }
    const own = value.metadata.namespace ?? DEFAULT_NAMESPACE;
    const paths: (string | number)[][] = [['spec'], ...(value.specs ?? []).map((_, i) => ['specs', i])];
    [value.spec, ...(value.specs ?? [])].forEach((s, i) => {
      for (const [key, other] of Object.entries(s?.endpointSelector.matchLabels ?? {})) {
        if (plainLabelKey(key) !== NAMESPACE_LABEL || other === own) continue;
        const path = [...paths[i]!, 'endpointSelector', 'matchLabels', key];
        complain(path, `the policy stands in namespace ${own} and selects only there; move it, or make it clusterwide`);
      }
    });
  });

type Document = z.infer<typeof document>;
type SpecDocument = z.infer<typeof spec>;
type SelectorDocument = z.infer<typeof selector>;

/** Fields of cilium.io/v2 that exist but are not understood here: no spelling is suggested for them. */
const KNOWN_ELSEWHERE = new Set(
  `nodeSelector ingressDeny egressDeny enableDefaultDeny labels log matchExpressions fromRequires toRequires fromCIDR
  fromCIDRSet fromEntities fromGroups fromNodes icmps toCIDR toCIDRSet toEntities toServices toFQDNs toGroups toNodes endPort
  rules terminatingTLS originatingTLS serverNames listener status uid resourceVersion creationTimestamp generation
  managedFields ownerReferences finalizers selfLink generateName`.split(/\s+/),
);

function hint(_path: FieldPath, key: string): string | undefined {
  return KNOWN_ELSEWHERE.has(key) ? 'not supported yet, and never ignored: remove it' : undefined;
}

/**
 * The policies of one file, all or none.
 * @throws CountersignError bad-input with every problem of the file.
 */
export function parsePolicies(file: string, text: string): Policy[] {
  const problems: Problem[] = [];
  const policies: Policy[] = [];
  for (const yaml of parseYamlDocuments(file, text)) {
    const checked = checkSchema(yaml, document, hint);
    if (checked.ok) policies.push(policyOf(yaml, checked.value));
    else problems.push(...checked.error);
  }
  if (problems.length > 0) throw problemsError(problems);
  return policies;
}

/** Two policies of one name would make it unclear which one `explain` means. @throws CountersignError bad-input */
export function refuseDuplicates(policies: readonly Policy[]): void {
  const seen = new Map<string, Policy>();
  const problems: string[] = [];
  for (const policy of policies) {
    const key = `${policy.kind} ${policy.namespace ?? ''} ${policy.name}`;
    const first = seen.get(key);
    if (first === undefined) seen.set(key, policy);
    else {
      const where = `${first.file}:${first.line}`;
      problems.push(
        `${policy.file}:${policy.line}: metadata.name: ${policy.name} stands in ${where} already; rename one of them`,
      );
    }
  }
  if (problems.length > 0) throw new CountersignError('bad-input', problems.join('\n'));
}

function policyOf(yaml: YamlDocument, value: Document): Policy {
  const namespace =
    value.kind === 'CiliumClusterwideNetworkPolicy' ? undefined : (value.metadata.namespace ?? DEFAULT_NAMESPACE);
  const specs: PolicySpec[] = [];
  if (value.spec !== undefined) specs.push(specOf(yaml, value.spec, ['spec'], namespace));
  value.specs?.forEach((s, i) => {
    specs.push(specOf(yaml, s, ['specs', i], namespace));
  });
  return { file: yaml.file, line: yaml.line, kind: value.kind, name: value.metadata.name, namespace, specs };
}

function specOf(yaml: YamlDocument, value: SpecDocument, path: FieldPath, namespace: string | undefined): PolicySpec {
  const rule = (
    direction: Direction,
    i: number,
    peers: readonly SelectorDocument[] | undefined,
    r: { toPorts?: z.infer<typeof ports>[] | undefined; authentication?: { mode: Rule['mode'] } | undefined },
  ): Rule => {
    const matches = portsOf(r.toPorts);
    return {
      file: yaml.file,
      line: yaml.lineOf([...path, direction, i]),
      direction,
      // A rule that names neither peers nor ports allows nothing: this is how default deny alone is written.
      peers: peers?.map((p) => selectorOf(p, namespace)) ?? (matches === 'any' ? [] : 'any'),
      ports: matches,
      mode: r.authentication?.mode,
    };
  };
  return {
    line: yaml.lineOf(path),
    description: value.description ?? '',
    subject: selectorOf(value.endpointSelector, namespace),
    ingress: (value.ingress ?? []).map((r, i) => rule('ingress', i, r.fromEndpoints, r)),
    egress: (value.egress ?? []).map((r, i) => rule('egress', i, r.toEndpoints, r)),
  };
}

/** A selector means the policy's own namespace, unless it names one itself. */
function selectorOf(value: SelectorDocument, namespace: string | undefined): Selector {
  const plain = Object.fromEntries(Object.entries(value.matchLabels ?? {}).map(([k, v]) => [plainLabelKey(k), v]));
  return { labels: plain, namespace: Object.hasOwn(plain, NAMESPACE_LABEL) ? undefined : namespace };
}

function portsOf(toPorts: z.infer<typeof ports>[] | undefined): PortMatch[] | 'any' {
  if (toPorts === undefined || toPorts.length === 0) return 'any';
  return toPorts.flatMap(({ ports }) =>
    ports.flatMap((p) =>
      (PROTOCOLS[p.protocol ?? 'ANY'] ?? []).map((protocol) => ({ protocol, port: Number(p.port) })),
    ),
  );
}
