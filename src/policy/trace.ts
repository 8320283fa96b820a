/** Why policy says what it says of one packet at one side: every rule that matches, and which of them decides. For people. */
import type { Direction } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, type SecurityIdentity } from '../model/ids.ts';
import { type Claim, decidingClaim, liesInside, narrowestClaim } from './auth-mode.ts';
import { type CidrPeer, cidrsOf, isCidrIdentity, WORLD_IPV4, WORLD_IPV6 } from './cidr.ts';
import type { PolicyRule } from './compiled.ts';
import { claimsOf, type Party, selectsParty } from './evaluate.ts';
import { plainLabels } from './labels.ts';
import { type NumberedSpec, numberRules } from './numbered.ts';
import type { AuthMode, Policy } from './rules.ts';

export interface MatchedRule {
  readonly rule: PolicyRule;
  readonly mode: AuthMode | undefined;
}

export interface SideTrace {
  /** Names of the policies that select the endpoint and say something of this direction. */
  readonly policies: readonly string[];
  /** Every rule that matches, in the order of the files; those that only observe too. */
  readonly matched: readonly MatchedRule[];
  /** Without what the other side's policies add. */
  readonly because: string;
}

export type Trace = (
  direction: Direction,
  local: SecurityIdentity,
  remote: SecurityIdentity,
  protocol: number,
  port: number,
) => SideTrace;

type FullClaim = Claim & { readonly action: 'allow' | 'deny' };

export function createTracer(
  policies: readonly Policy[],
  identities: readonly IdentityRow[],
  nodeLabels: Labels | undefined,
): Trace {
  const { specs, rules } = numberRules(policies);
  const cidrs = cidrsOf(cidrPeersOf(policies));
  const node = nodeLabels === undefined ? undefined : plainLabels(nodeLabels);
  const rows = new Map<number, IdentityRow>(identities.map((row) => [row.identity, row]));
  const owners = policies.flatMap((policy) => policy.specs.map(() => policy));

  function partyOf(identity: SecurityIdentity): Party | undefined {
    if (identity === IDENTITY_HOST) return { kind: 'host' };
    if (identity === IDENTITY_REMOTE_NODE) return { kind: 'remote-node' };
    if (identity === IDENTITY_WORLD) return { kind: 'world' };
    const cidr = isCidrIdentity(identity) ? cidrs.ofIdentity(identity) : undefined;
    if (cidr !== undefined) return { kind: 'cidr', node: cidr };
    const row = rows.get(identity);
    return row && { kind: 'workload', labels: plainLabels(row.labels), ports: row.ports ?? [] };
  }

  return (direction, local, remote, protocol, port) => {
    const [here, there] = [partyOf(local), partyOf(remote)];
    if (here === undefined || there === undefined) {
      return { policies: [], matched: [], because: 'one of the two is nobody that policy knows' };
    }
    const receiver = direction === 'ingress' ? here : there;
    const named = receiver.kind === 'workload' ? receiver.ports : [];
    const speaks = ({ spec }: NumberedSpec) =>
      spec.defaultDeny[direction] || spec.rules.some((rule) => rule.direction === direction);
    const selecting = specs
      .map((numbered, i) => ({ numbered, policy: owners[i]! }))
      .filter(({ numbered }) => speaks(numbered) && selectsParty(numbered.spec.subject, here, node));
    const inForce = selecting.filter(({ numbered }) => numbered.enforced);
    const requires = selecting.flatMap(({ numbered }) => numbered.spec.requires[direction]);
    const claimsIn = (all: typeof selecting, asked: typeof requires): FullClaim[] =>
      all.flatMap(({ numbered }) =>
        numbered.rules
          .filter(({ rule }) => rule.direction === direction)
          .flatMap((rule) => claimsOf(rule, asked, there, protocol, port, named)),
      );
    const everything = claimsIn(selecting, requires);
    const asked = inForce.flatMap(({ numbered }) => numbered.spec.requires[direction]);
    const numbers = [...new Set(everything.map(({ rule }) => rule))];
    return {
      policies: [...new Set(selecting.map(({ policy }) => nameOf(policy)))],
      matched: numbers.map((index) => ({
        rule: rules[index]!,
        mode: everything.find(({ rule }) => rule === index)!.mode,
      })),
      because: because(
        claimsIn(inForce, asked),
        rules,
        inForce.filter(({ numbered }) => numbered.spec.defaultDeny[direction]).map(({ policy }) => nameOf(policy)),
        inForce.length > 0,
        direction,
      ),
    };
  };
}

function nameOf({ namespace, name, enforcement }: Policy): string {
  return `${namespace === undefined ? name : `${namespace}/${name}`}${enforcement === 'observe' ? ' (observes)' : ''}`;
}

function because(
  claims: readonly FullClaim[],
  rules: readonly PolicyRule[],
  defaultDeny: readonly string[],
  isSelected: boolean,
  direction: Direction,
): string {
  const text = ({ rule }: Claim) => ruleText(rules[rule]!);
  const allows = claims.filter(({ action }) => action === 'allow');
  const deny = claims.filter(({ action }) => action === 'deny').sort((a, b) => a.rule - b.rule)[0];
  if (deny !== undefined) {
    const beaten = allows[0] === undefined ? '' : `; a deny beats what ${text(allows[0])} allows`;
    return `denied by ${text(deny)}${beaten}`;
  }
  const narrowest = narrowestClaim(allows);
  if (narrowest !== undefined) return `allowed by ${text(narrowest)}${authentication(allows, narrowest, text)}`;
  if (defaultDeny.length > 0) {
    const names = [...new Set(defaultDeny)];
    return `no rule allows it, and ${names.join(', ')} ${names.length > 1 ? 'deny' : 'denies'} by default`;
  }
  return isSelected
    ? `no rule matches it, and no policy that selects the endpoint denies ${direction} by default`
    : `no policy in force says anything of its ${direction}`;
}

function authentication(claims: readonly Claim[], narrowest: Claim, text: (claim: Claim) => string): string {
  const decides = decidingClaim(claims);
  if (decides?.mode === undefined) return '';
  const by = decides.rule === narrowest.rule ? 'the same rule' : text(decides);
  const said = `; authentication ${decides.mode} by ${by}`;
  const other = claims.find(({ mode }) => mode !== undefined && mode !== decides.mode);
  if (other === undefined) return said;
  const relation = liesInside(decides, other) ? 'is narrower than' : 'asks for more than';
  return `${said}, which ${relation} ${text(other)} (${other.mode})`;
}

export function ruleText({ policy, file, line, path }: Pick<PolicyRule, 'policy' | 'file' | 'line' | 'path'>): string {
  return `${policy} ${path} (${file}:${line})`;
}

function cidrPeersOf(policies: readonly Policy[]): CidrPeer[] {
  const peers = policies.flatMap(({ specs }) =>
    specs.flatMap(({ rules }) => rules.flatMap((rule) => (rule.peers === 'any' ? [] : rule.peers))),
  );
  return peers.flatMap((peer) => {
    if (peer.kind === 'cidr') return [peer];
    if (peer.kind !== 'entity') return [];
    return peer.entity === 'world-ipv4' ? [WORLD_IPV4] : peer.entity === 'world-ipv6' ? [WORLD_IPV6] : [];
  });
}
