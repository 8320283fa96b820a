/**
 * Which authentication holds where several rules allow the same packet. Explicit beats none; of explicit ones the narrower;
 * of two that are as narrow, or of which neither lies inside the other, the stronger.
 */
import { AUTH_TYPE_CODE, type AuthType } from '../model/datapath.ts';
import type { AuthMode } from './rules.ts';

export const AUTH_TYPE_OF: Readonly<Record<AuthMode, AuthType>> = {
  disabled: 'none',
  required: 'spiffe',
  'required-connection': 'spiffe-connection',
  'test-always-fail': 'test-always-fail',
};

/** What a policy file says to mean it. */
export const TEXT_OF_MODE: Readonly<Record<AuthMode, string>> = {
  disabled: 'disabled',
  required: 'required',
  'required-connection': 'required with scope connection',
  'test-always-fail': 'test-always-fail',
};

/** What one allow rule says of a packet it matches: how narrowly it names it, and what it asks for. */
export interface Claim {
  readonly rule: number;
  readonly mode: AuthMode | undefined;
  /** Names its peers, be it by one selector or another. */
  readonly namesPeer: boolean;
  readonly namesProtocol: boolean;
  /** Ports the rule names with this one: 0 to 65535 where it names none. */
  readonly first: number;
  readonly last: number;
}

/** Of two sides' demands, or two rules', the stronger holds. The kernel's numbers say nothing of that. */
export const STRENGTH: Readonly<Record<AuthMode, number>> = {
  disabled: 0,
  required: 1,
  'required-connection': 2,
  'test-always-fail': 3,
};

const STRENGTH_OF_CODE: readonly number[] = Object.entries(AUTH_TYPE_OF).reduce<number[]>((all, [mode, authType]) => {
  all[AUTH_TYPE_CODE[authType]] = STRENGTH[mode as AuthMode];
  return all;
}, []);

/** By the kernel's numbers of authentication types. */
export function isStrongerCode(a: number, b: number): boolean {
  return STRENGTH_OF_CODE[a]! > STRENGTH_OF_CODE[b]!;
}

/** Everything that `inner` says is also said by `outer`, and more. */
export function liesInside(inner: Claim, outer: Claim): boolean {
  const within =
    Number(inner.namesPeer) >= Number(outer.namesPeer) &&
    Number(inner.namesProtocol) >= Number(outer.namesProtocol) &&
    inner.first >= outer.first &&
    inner.last <= outer.last;
  return within && !isSameScope(inner, outer);
}

function isSameScope(a: Claim, b: Claim): boolean {
  return a.namesPeer === b.namesPeer && a.namesProtocol === b.namesProtocol && a.first === b.first && a.last === b.last;
}

/** The claim whose mode holds; undefined: none names one. */
export function decidingClaim(claims: readonly Claim[]): Claim | undefined {
  if (claims.length === 1) return claims[0]!.mode === undefined ? undefined : claims[0];
  const explicit = claims.filter(({ mode }) => mode !== undefined);
  let decides: Claim | undefined;
  for (const claim of explicit) {
    if (decides !== undefined && !isStronger(claim, decides)) continue;
    if (!explicit.some((other) => liesInside(other, claim))) decides = claim;
  }
  return decides;
}

/** For people: the rule that says it most exactly. */
export function narrowestClaim<T extends Claim>(claims: readonly T[]): T | undefined {
  let narrowest: T | undefined;
  for (const claim of claims) if (narrowest === undefined || isNarrower(claim, narrowest)) narrowest = claim;
  return narrowest;
}

/** Fewer claims with the same outcome, also beside any others. */
export function withoutIdleClaims<T extends Claim>(claims: readonly T[]): readonly T[] {
  if (claims.length < 2) return claims;
  const kept = new Set<T>();
  const strongest = new Map<string, T>();
  for (const claim of claims) {
    if (claim.mode === undefined) continue;
    const scope = `${claim.namesPeer} ${claim.namesProtocol} ${claim.first} ${claim.last}`;
    const other = strongest.get(scope);
    if (other === undefined || isStronger(claim, other)) strongest.set(scope, claim);
  }
  for (const claim of strongest.values()) kept.add(claim);
  kept.add(narrowestClaim(claims)!);
  return [...kept];
}

/** Of equals the first rule, so that the outcome does not hang on the order of claims. */
function isStronger(a: Claim, b: Claim): boolean {
  const difference = STRENGTH[a.mode!] - STRENGTH[b.mode!];
  return difference > 0 || (difference === 0 && a.rule < b.rule);
}

function isNarrower(a: Claim, b: Claim): boolean {
  if (a.namesPeer !== b.namesPeer) return a.namesPeer;
  if (a.namesProtocol !== b.namesProtocol) return a.namesProtocol;
  const difference = a.last - a.first - (b.last - b.first);
  return difference < 0 || (difference === 0 && a.rule < b.rule);
}
