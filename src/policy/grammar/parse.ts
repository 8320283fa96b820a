/** YAML documents to policies, in whichever of the known grammars. What is not understood is refused by name, never passed over. */
import type { z } from 'zod';
import {
  checkSchema,
  type Problem,
  parseYamlDocuments,
  problemsError,
  type YamlDocument,
} from '../../base/config-file.ts';
import { CountersignError, err, ok, type Result } from '../../base/errors.ts';
import { POLICY_KINDS, type Policy, type PolicyKind, type PolicyWarning } from '../rules.ts';
import { type Lowered, lowerCilium } from './cilium.ts';
import { ciliumSchema, type L7Handling } from './cilium-schema.ts';
import { isRecord } from './fields.ts';
import { lowerNetworkPolicy, networkPolicySchema } from './network-policy.ts';

export type { L7Handling } from './cilium-schema.ts';

export interface ParseOptions {
  /** Rules that look into the traffic: refused, or passed over with a warning, which allows the whole port. */
  readonly l7?: L7Handling | undefined;
}

export interface ParsedPolicies {
  readonly policies: Policy[];
  readonly warnings: PolicyWarning[];
}

type Read = (yaml: YamlDocument) => Result<Lowered, Problem[]>;

const CILIUM = 'cilium.io/v2';
const OWN = 'countersign.dev/v1alpha1';

function readers(l7: L7Handling): Readonly<Record<PolicyKind, Read>> {
  const cilium = (kind: PolicyKind, apiVersion: string, namespaced: boolean): Read => {
    const schema = ciliumSchema(apiVersion, kind, { namespaced, ownKind: apiVersion === OWN }, l7);
    return reader(schema, (yaml, value) => lowerCilium(yaml, kind, namespaced, value));
  };
  return {
    CiliumNetworkPolicy: cilium('CiliumNetworkPolicy', CILIUM, true),
    CiliumClusterwideNetworkPolicy: cilium('CiliumClusterwideNetworkPolicy', CILIUM, false),
    NetworkPolicy: reader(networkPolicySchema, lowerNetworkPolicy),
    AuthenticationPolicy: cilium('AuthenticationPolicy', OWN, true),
    ClusterAuthenticationPolicy: cilium('ClusterAuthenticationPolicy', OWN, false),
  };
}

function reader<T>(schema: z.ZodType<T>, lower: (yaml: YamlDocument, value: T) => Lowered): Read {
  return (yaml) => {
    const checked = checkSchema(yaml, schema);
    return checked.ok ? ok(lower(yaml, checked.value)) : checked;
  };
}

const READERS: Readonly<Record<L7Handling, Readonly<Record<PolicyKind, Read>>>> = {
  refuse: readers('refuse'),
  'ignore-with-warning': readers('ignore-with-warning'),
};

/**
 * The policies of one file, all or none.
 * @throws CountersignError bad-input with every problem of the file.
 */
export function parsePolicies(file: string, text: string, options: ParseOptions = {}): ParsedPolicies {
  const known = READERS[options.l7 ?? 'refuse'];
  const problems: Problem[] = [];
  const policies: Policy[] = [];
  const warnings: PolicyWarning[] = [];
  for (const yaml of parseYamlDocuments(file, text)) {
    const kind = kindOf(yaml);
    const read = kind.ok ? known[kind.value](yaml) : kind;
    if (read.ok) {
      policies.push(read.value.policy);
      warnings.push(...read.value.warnings);
    } else problems.push(...read.error);
  }
  if (problems.length > 0) throw problemsError(problems);
  return { policies, warnings };
}

/** The kind says which grammar a document is to be judged by; nothing else of it is looked at without one. */
function kindOf(yaml: YamlDocument): Result<PolicyKind, Problem[]> {
  const problem = (path: string[], message: string) =>
    err([{ file: yaml.file, line: yaml.lineOf(path), path, message }]);
  if (!isRecord(yaml.value)) return problem([], 'not a policy, but a list or a single value; write a map');
  const { kind } = yaml.value;
  const known = POLICY_KINDS.find((name) => name === kind);
  if (known !== undefined) return ok(known);
  const use = `use ${POLICY_KINDS.join(', ')}`;
  if (kind === undefined) return problem(['kind'], `missing; ${use}`);
  const given = typeof kind === 'string' ? JSON.stringify(kind.slice(0, 64)) : 'other than a string';
  return problem(['kind'], `cannot be ${given}; ${use}`);
}

/** Two policies of one name would make it unclear which one is meant. @throws CountersignError bad-input */
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
