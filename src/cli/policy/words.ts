/** Verdicts, traffic and rules in the words that the policy commands share. */
import { protocolName } from '../../agent/protocols.ts';
import type { AuthType } from '../../model/datapath.ts';
import type { PolicyRule } from '../../policy/compiled.ts';
import type { Traffic } from '../../policy/diff.ts';

const LAST_PORT = 65_535;
const LAST_ICMP_TYPE = 255;

/** What a policy would have to say to mean it: the field's words for an authentication type. */
export const MODE_OF: Readonly<Record<AuthType, 'none' | 'required' | 'required-connection' | 'test-always-fail'>> = {
  none: 'none',
  spiffe: 'required',
  'spiffe-connection': 'required-connection',
  'test-always-fail': 'test-always-fail',
};

/** "allow", "allow, authentication required", "deny"; "deny, authentication required" where that cannot be met. */
export function verdictText({ verdict, authType }: { verdict: 'allow' | 'deny'; authType: AuthType }): string {
  return authType === 'none' ? verdict : `${verdict}, authentication ${MODE_OF[authType]}`;
}

/** "tcp/80", "tcp/80-444", "icmp/8", "tcp", "everything", "everything but tcp, udp". */
export function trafficText(traffic: Traffic): string {
  if ('besides' in traffic) {
    const named = traffic.besides.map(protocolName).join(', ');
    return named === '' ? 'everything' : `everything but ${named}`;
  }
  const { protocol, first, last } = traffic;
  const name = protocolName(protocol);
  const end = name.startsWith('icmp') ? LAST_ICMP_TYPE : LAST_PORT;
  if (first === 0 && last === end) return name;
  return first === last ? `${name}/${first}` : `${name}/${first}-${last}`;
}

/** As `countersign explain` shows a rule. */
export function ruleView(rule: PolicyRule | undefined) {
  if (rule === undefined || rule.policy === '') return 'none';
  const { policy, file, line, path, direction, action, enforcement } = rule;
  return { policy, file, line, path, direction, action, ...(enforcement === 'observe' ? { enforcement } : {}) };
}
