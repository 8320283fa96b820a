/** Short ways to write a policy document, and to ask what became of it. */
import { expect } from 'vitest';
import { CountersignError } from '../../../../src/base/errors.ts';
import { type ParseOptions, parsePolicies } from '../../../../src/policy/grammar/parse.ts';
import type { Policy, PolicySpec, Rule } from '../../../../src/policy/rules.ts';

export type Kind = Policy['kind'];

const API_VERSIONS: Readonly<Record<Kind, string>> = {
  CiliumNetworkPolicy: 'cilium.io/v2',
  CiliumClusterwideNetworkPolicy: 'cilium.io/v2',
  NetworkPolicy: 'networking.k8s.io/v1',
  AuthenticationPolicy: 'countersign.dev/v1alpha1',
  ClusterAuthenticationPolicy: 'countersign.dev/v1alpha1',
};

/** Lines 1 to 4. */
export const head = (kind: Kind) => `apiVersion: ${API_VERSIONS[kind]}\nkind: ${kind}\nmetadata:\n  name: p\n`;

/** `yaml` begins at line 7, indented by two. */
export const document = (yaml: string, kind: Kind = 'CiliumNetworkPolicy', subject = 'endpointSelector: {}') =>
  `${head(kind)}spec:\n  ${subject}\n${yaml}\n`;

export const specOf = (text: string, options?: ParseOptions): PolicySpec =>
  parsePolicies('p.yaml', text, options).policies[0]!.specs[0]!;

/** Of the first rule: what the compiler sees of it. */
export function ruleOf(text: string, options?: ParseOptions): Pick<Rule, 'peers' | 'ports'> {
  const { peers, ports } = specOf(text, options).rules[0]!;
  return { peers, ports };
}

export function problemsOf(act: () => unknown): string[] {
  try {
    act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(CountersignError);
    expect((thrown as CountersignError).code).toBe('bad-input');
    return (thrown as CountersignError).message.split('\n');
  }
  throw new Error('nothing was refused');
}

export const refused = (text: string, options?: ParseOptions) =>
  problemsOf(() => parsePolicies('p.yaml', text, options));

export const inNamespace = (name: string) => ({ key: 'io.kubernetes.pod.namespace', operator: 'In', values: [name] });
export const has = (key: string, ...values: string[]) => ({ key, operator: 'In', values });
export const workloads = (...requirements: unknown[]) => ({ kind: 'workloads', selector: { requirements } });
export const entity = (name: string) => ({ kind: 'entity', entity: name });
export const cidr = (address: string, length: number, ...except: [string, number][]) => ({
  kind: 'cidr',
  prefix: { address, length },
  except: except.map(([a, l]) => ({ address: a, length: l })),
});
