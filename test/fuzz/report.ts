/** A difference between kernel and reference, for a person to read. */
import { etherTypeOf } from '../bpf/table/run.ts';
import type { Difference, Scenario, Step } from './scenario.ts';

export function hexdump(bytes: Buffer): string {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = bytes.subarray(at, at + 16);
    const hex = [...row].map((b) => b.toString(16).padStart(2, '0')).join(' ');
    lines.push(`  ${at.toString(16).padStart(4, '0')}  ${hex}`);
  }
  return lines.join('\n');
}

const plain = (_: string, value: unknown): unknown => {
  if (value instanceof Map) return Object.fromEntries(value);
  if (Buffer.isBuffer(value)) return value.toString('hex');
  return value === Number.POSITIVE_INFINITY ? 'never' : value;
};

function describe(step: Step): string {
  switch (step.kind) {
    case 'packet':
      return `${step.program} mark=0x${step.mark.toString(16)} ${step.bytes.toString('hex')}`;
    case 'change':
      return `change ${JSON.stringify(step.to, plain)}`;
    default:
      return JSON.stringify(step);
  }
}

export function describeDifference(scenario: Scenario, { at, kernel, reference, before }: Difference): string {
  const step = scenario.steps[at] as Extract<Step, { kind: 'packet' }>;
  const said = (v: { action: string; mark: number }) => `${v.action} mark=0x${v.mark.toString(16)}`;
  const {
    now,
    config,
    endpoints,
    fences,
    addresses,
    prefixes,
    classes,
    policy,
    proofs,
    flowProofs,
    taken,
    flows,
    datagrams,
  } = before;
  const facts = {
    now,
    config,
    endpoints,
    fences,
    addresses,
    prefixes,
    classes,
    policy,
    proofs,
    flowProofs,
    taken,
    flows,
    datagrams,
  };
  const { waiting, held } = before;
  return [
    `seed ${scenario.seed}, after ${at} steps: ${step.program}, mark 0x${step.mark.toString(16)}, EtherType 0x${etherTypeOf(step.bytes).toString(16)}`,
    hexdump(step.bytes),
    `kernel:    ${said(kernel)}${kernel.reasons === undefined ? '' : `, counted: ${kernel.reasons}`}`,
    `reference: ${said(reference)}${reference.reason === undefined ? '' : ` ${reference.reason}`}${reference.observed === undefined ? '' : ` observed ${reference.observed}`}`,
    ...(kernel.action === 'pass' && reference.action !== 'pass'
      ? ['THE KERNEL ALLOWS WHAT THE REFERENCE DOES NOT']
      : []),
    'state before it:',
    ...Object.entries({ ...facts, waiting, held }).map(([name, value]) => `  ${name}: ${JSON.stringify(value, plain)}`),
    'steps before it:',
    ...scenario.steps.slice(0, at).map((s) => `  ${describe(s)}`),
  ].join('\n');
}
