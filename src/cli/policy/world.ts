/** Policies and parties made ready to be asked: the agent's own compiler, with workloads from a file instead of a server. */
import type { IdentityRow, Labels } from '../../model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../model/ids.ts';
import { spiffeId } from '../../model/spiffe-id.ts';
import { compilePolicy } from '../../policy/compile.ts';
import type { CompiledPolicy, Decision, Outcome, PolicyRule } from '../../policy/compiled.ts';
import { effectOf, unmetBecause } from '../../policy/effect.ts';
import type { Policy } from '../../policy/rules.ts';
import { createTracer, type SideTrace } from '../../policy/trace.ts';
import { type Party, partyOf, UnknownParty } from './party.ts';
import type { Workloads } from './sources.ts';

export interface WorldOptions {
  readonly policies: readonly Policy[];
  readonly workloads: Workloads;
  /** Everybody who will be asked about: labels among them become workloads of their own. */
  readonly names: readonly string[];
  readonly nodeLabels?: Labels | undefined;
  /** Called for each name that means nobody; without it the first one is thrown. */
  readonly unknown?: (index: number, problem: UnknownParty) => void;
}

export interface Answer {
  readonly decision: Decision;
  /** The decision with what cannot be met taken as a denial. */
  readonly inForce: Outcome;
  /** Likewise, if the policies that only observe were in force too. */
  readonly observed: Outcome;
  /** In one sentence: which side, or that both allow it. */
  readonly because: string;
  readonly egress: SideTrace;
  readonly ingress: SideTrace;
}

export interface World {
  readonly compiled: CompiledPolicy;
  readonly rules: readonly PolicyRule[];
  /** One of WorldOptions.names. */
  party(name: string): Party;
  ask(from: string, to: string, protocol: number, port: number): Answer;
}

function isWorkload({ kind }: Party): boolean {
  return kind === 'workload' || kind === 'labels';
}

function sentence({ verdict, authType, egress, ingress }: Decision, sender: SideTrace, receiver: SideTrace): string {
  if (verdict === 'deny') {
    const denies = [
      egress.verdict === 'deny' ? `egress: ${sender.because}` : undefined,
      ingress.verdict === 'deny' ? `ingress: ${receiver.because}` : undefined,
    ];
    return denies.filter((text) => text !== undefined).join('; ');
  }
  if (authType === 'none') return 'policy allows it and requires no authentication';
  return authType === 'spiffe-connection'
    ? 'policy allows each connection once both sides have proved who they are for it'
    : 'policy allows it once both sides have proved who they are';
}

/** Above those of a registration entries file. */
const FIRST_LABELS_IDENTITY = 65_536;

/** @throws UnknownParty */
export function openWorld({ policies, workloads, names, nodeLabels, unknown }: WorldOptions): World {
  const parties = new Map<string, Party>();
  names.forEach((name, index) => {
    if (parties.has(name)) return;
    try {
      parties.set(name, partyOf(name, workloads));
    } catch (thrown) {
      if (!(thrown instanceof UnknownParty) || unknown === undefined) throw thrown;
      unknown(index, thrown);
    }
  });
  const extra = new Map<string, IdentityRow>();
  for (const [name, party] of parties) {
    if (party.kind !== 'labels') continue;
    const number = FIRST_LABELS_IDENTITY + extra.size;
    extra.set(name, {
      identity: securityIdentity(number),
      spiffeId: spiffeId(`spiffe://labels.invalid/${number}`),
      labels: party.labels,
      nodes: [],
      ports: [],
    });
  }
  const rows = [...workloads.rows, ...extra.values()];
  const compiled = compilePolicy(
    policies,
    rows,
    rows.map(({ identity }) => identity),
    { nodeLabels },
  );
  const trace = createTracer(policies, rows, nodeLabels);
  const partyNamed = (name: string) => parties.get(name) ?? partyOf(name, workloads);
  const identityOf = (name: string): SecurityIdentity => {
    const party = partyNamed(name);
    switch (party.kind) {
      case 'workload':
        return party.row.identity;
      case 'labels':
        return extra.get(name)!.identity;
      case 'address':
        return compiled.identityOfAddress(party.address);
      case 'entity':
        return party.identity;
      default:
        return party satisfies never;
    }
  };
  return {
    compiled,
    rules: compiled.rules,
    party: partyNamed,
    ask(fromName, toName, protocol, port) {
      const [from, to] = [identityOf(fromName), identityOf(toName)];
      const decision = compiled.decide(from, to, protocol, port);
      const egress = trace('egress', from, to, protocol, port);
      const ingress = trace('ingress', to, from, protocol, port);
      const areWorkloads = [fromName, toName].every((name) => isWorkload(partyNamed(name)));
      const inForce = effectOf(decision, areWorkloads);
      const observed = effectOf(decision.observed ?? decision, areWorkloads);
      const because = unmetBecause(decision, areWorkloads) ?? sentence(decision, egress, ingress);
      return { decision, inForce, observed, because, egress, ingress };
    },
  };
}
