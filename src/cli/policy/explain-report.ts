/** `countersign policy explain`: the shape of `countersign explain`, as far as files can tell, and each rule that matched. */
import type { Labels } from '../../model/identity.ts';
import type { Outcome, PolicyRule } from '../../policy/compiled.ts';
import { ruleText, type SideTrace } from '../../policy/trace.ts';
import type { Party } from './party.ts';
import type { PolicySources, Workloads } from './sources.ts';
import { ruleView, trafficText, verdictText } from './words.ts';
import { openWorld } from './world.ts';

export interface ExplainInputs {
  readonly sources: PolicySources;
  readonly workloads: Workloads;
  readonly nodeLabels: Labels | undefined;
  readonly from: string;
  readonly to: string;
  readonly protocol: number;
  readonly port: number;
}

export type ExplainReport = ReturnType<typeof explainOffline>;

/** @throws UnknownParty */
export function explainOffline({ sources, workloads, nodeLabels, from, to, protocol, port }: ExplainInputs) {
  const world = openWorld({ policies: sources.policies, workloads, names: [from, to], nodeLabels });
  const { decision, inForce, observed, because, egress, ingress } = world.ask(from, to, protocol, port);
  return {
    verdict: inForce.verdict,
    because,
    from: partyView(world.party(from)),
    to: partyView(world.party(to)),
    traffic: trafficText({ protocol, first: port, last: port }),
    policy: {
      egress: decision.egress.verdict,
      ingress: decision.ingress.verdict,
      authentication: decision.authType,
      rule: ruleView(world.rules[decision.rule]),
    },
    ...(decision.observed === undefined ? {} : { observed: outcomeView(observed, world.rules) }),
    egress: sideView(egress),
    ingress: sideView(ingress),
    warnings: sources.warnings,
  };
}

function outcomeView({ verdict, authType, rule }: Outcome, rules: readonly PolicyRule[]) {
  return { verdict, authentication: authType, rule: ruleView(rules[rule]) };
}

type PartyView =
  | { readonly spiffeId: string; readonly labels: Labels }
  | { readonly labels: Labels }
  | { readonly entity: string; readonly address: string }
  | { readonly entity: string };

function partyView(party: Party): PartyView {
  switch (party.kind) {
    case 'workload':
      return { spiffeId: party.row.spiffeId, labels: party.row.labels };
    case 'labels':
      return { labels: party.labels };
    case 'address':
      return { entity: 'world', address: party.address };
    case 'entity':
      return { entity: party.entity };
    default:
      return party satisfies never;
  }
}

function sideView({ policies, matched, because }: SideTrace) {
  return {
    because,
    policies,
    matched: matched.map(({ rule, mode }) => ({
      ...(ruleView(rule) as Exclude<ReturnType<typeof ruleView>, 'none'>),
      ...(mode === undefined ? {} : { mode }),
    })),
  };
}

export function explainText(report: ExplainReport): string {
  const { verdict, because, policy, observed, traffic } = report;
  const side = (name: 'egress' | 'ingress', at: PartyView) => {
    const { matched, policies, because: why } = report[name];
    return [
      `${name} of ${partyText(at)}: ${policy[name]}`,
      `  ${why}`,
      `  policies: ${policies.length === 0 ? 'none' : policies.join(', ')}`,
      ...matched.map((rule) => {
        const notes = [rule.mode && `authentication ${rule.mode}`, rule.enforcement === 'observe' && 'observes only'];
        const text = notes.filter(Boolean).join(', ');
        return `  ${rule.action}: ${ruleText(rule)}${text === '' ? '' : ` (${text})`}`;
      }),
    ];
  };
  const authType = policy.authentication;
  return [
    `${partyText(report.from)} -> ${partyText(report.to)} ${traffic}: ${verdictText({ verdict, authType })}`,
    because,
    ...(observed === undefined
      ? []
      : [
          `if the policies that observe were in force: ${verdictText({ verdict: observed.verdict, authType: observed.authentication })}`,
        ]),
    ...side('egress', report.from),
    ...side('ingress', report.to),
  ].join('\n');
}

function partyText(party: PartyView): string {
  if ('spiffeId' in party) return party.spiffeId;
  if ('address' in party) return party.address;
  if ('entity' in party) return party.entity;
  return Object.entries(party.labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(',');
}
