/** Policies by pair of identities: all that the simulated kernel and the auth manager ask of them. */
import type { PolicyDecisions } from '../../src/auth/ports.ts';
import type { AuthType } from '../../src/model/datapath.ts';
import type { SecurityIdentity } from '../../src/model/ids.ts';

export type PairRule = 'required' | 'free' | 'denied';

export class Policy implements PolicyDecisions {
  readonly #rules: ReadonlyMap<string, PairRule>;

  readonly #peers = new Map<string, SecurityIdentity[]>();

  constructor(rules: ReadonlyMap<string, PairRule>) {
    this.#rules = rules;
  }

  with(a: SecurityIdentity, b: SecurityIdentity, rule: PairRule): Policy {
    return new Policy(new Map([...this.#rules, [pairText(a, b), rule]]));
  }

  ruleOf(a: SecurityIdentity, b: SecurityIdentity): PairRule {
    return this.#rules.get(pairText(a, b)) ?? 'free';
  }

  decide(from: SecurityIdentity, to: SecurityIdentity) {
    const rule = this.ruleOf(from, to);
    const authType: AuthType = rule === 'required' ? 'spiffe' : 'none';
    return { verdict: rule === 'denied' ? ('deny' as const) : ('allow' as const), authType, rule: 1 };
  }

  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[] {
    return this.ruleOf(a, b) === 'required' ? ['spiffe'] : [];
  }

  /** Whom these must authenticate with. */
  requiredPeers(locals: readonly SecurityIdentity[]): SecurityIdentity[] {
    const key = locals.join();
    const known = this.#peers.get(key);
    if (known !== undefined) return known;
    const peers = new Set<SecurityIdentity>();
    for (const [pair, rule] of this.#rules) {
      if (rule !== 'required') continue;
      const [a, b] = pair.split('/').map(Number) as [SecurityIdentity, SecurityIdentity];
      if (locals.includes(a)) peers.add(b);
      if (locals.includes(b)) peers.add(a);
    }
    this.#peers.set(key, [...peers]);
    return [...peers];
  }
}

export function pairText(a: SecurityIdentity, b: SecurityIdentity): string {
  return a < b ? `${a}/${b}` : `${b}/${a}`;
}
