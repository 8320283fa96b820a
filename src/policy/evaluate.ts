/** What a set of rules says of one packet: allowed or not, and which authentication. The compiler and `explain` both ask here. */
import { AUTH_TYPE_CODE, type AuthType } from '../model/datapath.ts';
import type { AuthMode, PortMatch } from './policy.ts';

/** A rule with its selectors resolved to identities. */
export interface ResolvedRule {
  /** Index into CompiledPolicy.rules, from 1. */
  readonly index: number;
  readonly peers: ReadonlySet<number> | 'any';
  readonly ports: readonly PortMatch[] | 'any';
  readonly mode: AuthMode | undefined;
}

export interface Verdict {
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
  /** The rule that decided; 0: none did (no policy selects the endpoint, or no rule matches). */
  readonly rule: number;
}

export const DEFAULT_ALLOW: Verdict = { verdict: 'allow', authType: 'none', rule: 0 };
export const DEFAULT_DENY: Verdict = { verdict: 'deny', authType: 'none', rule: 0 };

const AUTH_TYPE_OF: Readonly<Record<AuthMode, AuthType>> = {
  disabled: 'none',
  required: 'spiffe',
  'test-always-fail': 'test-always-fail',
};

/** How narrowly a rule names a packet: a set of the fields it names. A packet's matching keys are told apart by this alone. */
const NAMES_PEER = 4;
const NAMES_PROTOCOL = 2;
const NAMES_PORT = 1;
const KEYS = 8;

/**
 * `rules` undefined: no policy selects the endpoint in this direction. `port` 0 or a protocol no rule names stands for
 * all that the rules do not name. `peer` undefined: something that is no known workload.
 *
 * Of the explicit modes that cover the packet the narrowest decides; of two that are equally narrow, or of which neither
 * covers the other, the stronger. A rule without a mode thus takes that of the rule that covers it.
 */
export function evaluate(
  rules: readonly ResolvedRule[] | undefined,
  peer: number | undefined,
  protocol: number,
  port: number,
): Verdict {
  if (rules === undefined) return DEFAULT_ALLOW;
  const explicit: (ResolvedRule | undefined)[] = new Array(KEYS);
  let narrowest: ResolvedRule | undefined;
  let narrowestKey = -1;
  for (const rule of rules) {
    const key = keyOfMatch(rule, peer, protocol, port);
    if (key === undefined) continue;
    if (key > narrowestKey) {
      narrowest = rule;
      narrowestKey = key;
    }
    if (rule.mode !== undefined && strength(rule) > strength(explicit[key])) explicit[key] = rule;
  }
  if (narrowest === undefined) return DEFAULT_DENY;
  let decides: ResolvedRule | undefined;
  for (let key = 0; key < KEYS; key++) {
    const rule = explicit[key];
    if (rule === undefined || hasNarrower(explicit, key)) continue;
    if (strength(rule) >= strength(decides)) decides = rule;
  }
  const authType = decides?.mode === undefined ? 'none' : AUTH_TYPE_OF[decides.mode];
  return { verdict: 'allow', authType, rule: (authType === 'none' ? narrowest : (decides ?? narrowest)).index };
}

/** Does the rule apply to this peer at all? */
export function namesPeer(rule: ResolvedRule, peer: number | undefined): boolean {
  return rule.peers === 'any' || (peer !== undefined && rule.peers.has(peer));
}

/** Both ends must allow; the sender's hook already demands what the receiver's will. */
export function strongerOf(own: Verdict, other: Verdict): Verdict {
  if (own.verdict === 'deny' || other.verdict === 'deny') return own;
  return AUTH_TYPE_CODE[other.authType] > AUTH_TYPE_CODE[own.authType] ? { ...other, verdict: 'allow' } : own;
}

function keyOfMatch(rule: ResolvedRule, peer: number | undefined, protocol: number, port: number): number | undefined {
  if (!namesPeer(rule, peer)) return undefined;
  const key = rule.peers === 'any' ? 0 : NAMES_PEER;
  if (rule.ports === 'any') return key;
  let best: number | undefined;
  for (const match of rule.ports) {
    if (match.protocol !== protocol) continue;
    if (match.port === 0) best ??= key | NAMES_PROTOCOL;
    else if (match.port === port) return key | NAMES_PROTOCOL | NAMES_PORT;
  }
  return best;
}

function hasNarrower(explicit: readonly (ResolvedRule | undefined)[], key: number): boolean {
  for (let other = 0; other < KEYS; other++) {
    if (other !== key && (other & key) === key && explicit[other] !== undefined) return true;
  }
  return false;
}

/** -1: none. */
function strength(rule: ResolvedRule | undefined): number {
  return rule?.mode === undefined ? -1 : AUTH_TYPE_CODE[AUTH_TYPE_OF[rule.mode]];
}
