/** Would a packet pass, and why: the whole chain of reasons, from names to the verdict. */
import { CountersignError } from '../base/errors.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import { parseAddress } from '../model/address.ts';
import type { IdentityRow } from '../model/identity.ts';
import type { Parts } from './views.ts';

export interface ExplainQuery {
  readonly from: string;
  readonly to: string;
  readonly port: number;
  readonly protocol: string;
}

const protocols: Readonly<Record<string, number>> = { tcp: 6, udp: 17, icmp: 1, icmpv6: 58, sctp: 132 };

/** An endpoint's name, a SPIFFE ID (or its last segment), an address, or a security identity. */
function find(parts: Parts, text: string): IdentityRow {
  const rows = parts.server.identities.rows();
  const address = parseAddress(text);
  const endpoint = parts.endpoints
    .view()
    .find((e) => e.name === text || (address !== undefined && e.addresses.includes(address)));
  const vouched = address === undefined ? undefined : parts.manager.vouches().find((v) => v.address === address);
  const row =
    rows.find((r) => r.spiffeId === (endpoint?.spiffeId ?? vouched?.spiffeId ?? text)) ??
    rows.find((r) => String(r.identity) === text) ??
    rows.find((r) => r.spiffeId.endsWith(`/${text}`));
  if (row === undefined) {
    throw new CountersignError(
      'not-found',
      `nobody is called "${text}": give an endpoint's name, a SPIFFE ID or an address (countersign endpoint list, entry list)`,
    );
  }
  return row;
}

export function explainPair(parts: Parts, query: ExplainQuery) {
  const protocol = protocols[query.protocol === '' ? 'tcp' : query.protocol];
  if (protocol === undefined)
    throw new CountersignError(
      'bad-input',
      `protocol "${query.protocol}": there are ${Object.keys(protocols).join(', ')}`,
    );
  const from = find(parts, query.from);
  const to = find(parts, query.to);
  const decision = parts.policy.decide(from.identity, to.identity, protocol, query.port);
  const facts = parts.manager.explain(from.identity, to.identity);
  const required = decision.verdict === 'allow' && decision.authType !== 'none';
  const proven = facts.entries.length > 0;
  const failure = facts.failures[0];
  const { verdict, because } = judge();

  function judge(): { verdict: 'allow' | 'deny' | 'on demand'; because: string } {
    if (decision.verdict === 'deny') return { verdict: 'deny', because: 'no rule of the policies allows it' };
    if (decision.authType === 'test-always-fail') return { verdict: 'deny', because: reasonCodes.AUTH_ALWAYS_FAIL };
    if (!required) return { verdict: 'allow', because: 'policy allows it and requires no authentication' };
    if (proven) return { verdict: 'allow', because: 'policy allows it and both sides are proven' };
    // A failure that was forgiven, because what it rested on has changed, does not decide the next try.
    if (failure !== undefined && failure.count > 0)
      return {
        verdict: 'deny',
        because: `policy requires authentication and it failed: ${reasonCodes[failure.reason]}`,
      };
    return {
      verdict: 'on demand',
      because: 'policy requires authentication; the first packet will be held while both sides prove themselves',
    };
  }

  const rule = parts.policy.rule(decision.rule);
  return {
    verdict,
    because,
    from: side(from),
    to: side(to),
    policy: {
      egress: decision.egress.verdict,
      ingress: decision.ingress.verdict,
      authentication: decision.authType,
      rule:
        rule === undefined
          ? 'none'
          : { policy: rule.policy, file: rule.file, line: rule.line, direction: rule.direction },
    },
    vouches: facts.vouches,
    proofs: facts.entries,
    tunnel: parts.path.describe().type,
    lastSuccess: facts.lastSuccess,
    lastFailure: failure === undefined ? undefined : { ...failure, text: reasonCodes[failure.reason] },
    ownSvid: facts.ownProof,
  };
}

function side(row: IdentityRow) {
  return { spiffeId: row.spiffeId, identity: row.identity, labels: row.labels, nodes: row.nodes };
}
