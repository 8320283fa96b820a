/** The rules of all policies with the numbers that the kernel, the audit log and `explain` know them by. */
import type { PolicyRule } from './compiled.ts';
import type { Policy, PolicySpec, Rule } from './rules.ts';

export interface NumberedRule {
  /** Index into CompiledPolicy.rules, from 1. */
  readonly index: number;
  readonly rule: Rule;
}

export interface NumberedSpec {
  readonly spec: PolicySpec;
  readonly rules: readonly NumberedRule[];
  /** In force; else it is only watched what it would do. */
  readonly enforced: boolean;
}

export interface NumberedPolicies {
  readonly specs: readonly NumberedSpec[];
  readonly rules: readonly PolicyRule[];
}

export function numberRules(policies: readonly Policy[]): NumberedPolicies {
  const rules: PolicyRule[] = [
    {
      file: '',
      line: 0,
      path: '',
      policy: '',
      enforcement: 'enforce',
      direction: 'egress',
      action: 'deny',
      description: '',
    },
  ];
  const specs = policies.flatMap((policy) =>
    policy.specs.map((spec) => ({
      spec,
      enforced: policy.enforcement === 'enforce',
      rules: spec.rules.map((rule) => {
        const { file, line, path, direction, action } = rule;
        const { enforcement } = policy;
        const { description } = spec;
        rules.push({ file, line, path, policy: policyName(policy), enforcement, direction, action, description });
        return { index: rules.length - 1, rule };
      }),
    })),
  );
  return { specs, rules };
}

/** "default/backend" or, clusterwide, "backend". */
export function policyName(policy: Pick<Policy, 'name' | 'namespace'>): string {
  return policy.namespace === undefined ? policy.name : `${policy.namespace}/${policy.name}`;
}
