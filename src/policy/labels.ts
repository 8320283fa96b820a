/** Labels and the selectors that ask for them. */
import type { Labels } from '../model/identity.ts';
import { DEFAULT_NAMESPACE, NAMESPACE_LABEL, type Requirement, type Selector } from './rules.ts';

/** Keys without their source (there is one source of labels, the identity server), and always a namespace. */
export function plainLabels(labels: Labels): ReadonlyMap<string, string> {
  const plain = new Map([[NAMESPACE_LABEL, DEFAULT_NAMESPACE]]);
  for (const key in labels) plain.set(withoutSource(key), labels[key]!);
  return plain;
}

function withoutSource(key: string): string {
  return key.startsWith('k8s:') || key.startsWith('any:') ? key.slice(4) : key;
}

export function selects(selector: Selector, labels: ReadonlyMap<string, string>): boolean {
  for (const requirement of selector.requirements) if (!holds(requirement, labels)) return false;
  return true;
}

/** As in Kubernetes: NotIn holds where the label is missing. */
export function holds({ key, operator, values }: Requirement, labels: ReadonlyMap<string, string>): boolean {
  const value = labels.get(key);
  switch (operator) {
    case 'In':
      return value !== undefined && values.includes(value);
    case 'NotIn':
      return value === undefined || !values.includes(value);
    case 'Exists':
      return value !== undefined;
    case 'DoesNotExist':
      return value === undefined;
    default:
      return operator satisfies never;
  }
}
