/** Would a packet pass, and why: the whole chain of reasons, from names to the verdict. */
import { dropReasons } from '../base/registry/drop-reasons.gen.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import { type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import type { Outcome } from '../policy/compiled.ts';
import { protocolOf } from './protocols.ts';
import { type Target, targetOf } from './target.ts';
import { agoText, failureView, type Parts } from './views.ts';

export interface ExplainQuery {
  readonly from: string;
  readonly to: string;
  readonly port: number;
  readonly protocol: string;
}

type Answer = { readonly verdict: 'allow' | 'deny' | 'on demand'; readonly because: string };

export async function explainPair(parts: Parts, query: ExplainQuery) {
  const protocol = protocolOf(query.protocol);
  const from = targetOf(parts, query.from);
  const to = targetOf(parts, query.to);
  const nobody = [from, to].find((target) => target.kind === 'nobody');
  if (nobody !== undefined) {
    const because = `${nobody.address}: ${dropReasons.NO_VOUCH.text}`;
    return { verdict: 'deny', because, from: side(from), to: side(to) };
  }
  const [a, b] = [identityOf(from), identityOf(to)];
  const decision = parts.policy.decide(a, b, protocol, query.port);
  const facts = parts.manager.explain(a, b);
  const failure = facts.failures[0];
  const proven = facts.entries.some(({ authType }) => authType === 'spiffe');
  const areWorkloads = from.kind === 'workload' && to.kind === 'workload';
  const unprovable = facts.ownProof.find(({ refusal }) => refusal !== undefined);
  const answer = (outcome: Outcome): Answer =>
    judge(outcome, { proven, areWorkloads, failure, unprovable, isPortNamed: query.port !== 0 });
  const { verdict, because } = answer(decision);
  // What every policy would say if those that only observe were in force too; the same when it says nothing else.
  const observed = decision.observed === undefined ? undefined : answer(decision.observed);
  return {
    verdict,
    because,
    from: side(from),
    to: side(to),
    policy: {
      egress: decision.egress.verdict,
      ingress: decision.ingress.verdict,
      authentication: decision.authType,
      rule: ruleView(parts, decision.rule),
    },
    ...(decision.observed === undefined || observed === undefined
      ? {}
      : {
          observed: {
            ...observed,
            authentication: decision.observed.authType,
            rule: ruleView(parts, decision.observed.rule),
          },
        }),
    ...modeView(parts),
    fences: fencesOf(parts, [a, b]),
    channels: channelsOf(parts, [from, to]),
    vouches: facts.vouches,
    authenticators: facts.authenticators,
    proofs: facts.entries,
    tunnel: parts.path.describe().type,
    tunnels: await tunnelsTo(parts, new Set([...facts.vouches, ...facts.authenticators].map(({ node }) => node))),
    lastSuccess: facts.lastSuccess,
    lastFailure: failure === undefined ? undefined : { ...failure, text: reasonCodes[failure.reason] },
    ownSvid: facts.ownProof,
  };
}

function judge(
  outcome: Outcome,
  known: {
    readonly proven: boolean;
    readonly areWorkloads: boolean;
    readonly failure: { readonly reason: ReasonCode; readonly count: number } | undefined;
    /** A workload of this node that has nothing to prove itself with. */
    readonly unprovable: { readonly identity: number; readonly refusal: ReasonCode | undefined } | undefined;
    readonly isPortNamed: boolean;
  },
): Answer {
  const { proven, areWorkloads, failure, unprovable, isPortNamed } = known;
  if (outcome.verdict === 'deny') {
    const { text } = outcome.rule === 0 ? dropReasons.POLICY_DENIED : dropReasons.POLICY_DENY_RULE;
    const hint = '; no port was named, so only rules for all ports count';
    return { verdict: 'deny', because: isPortNamed || outcome.rule !== 0 ? text : `${text}${hint}` };
  }
  if (outcome.authType === 'test-always-fail') return { verdict: 'deny', because: reasonCodes.AUTH_ALWAYS_FAIL };
  if (outcome.authType === 'none')
    return { verdict: 'allow', because: 'policy allows it and requires no authentication' };
  if (!areWorkloads) return { verdict: 'deny', because: dropReasons.AUTH_NOT_A_WORKLOAD.text };
  if (proven && outcome.authType === 'spiffe')
    return { verdict: 'allow', because: 'policy allows it and both sides are proven' };
  if (unprovable?.refusal !== undefined) {
    const because = `policy requires authentication, and identity ${unprovable.identity} of this node cannot prove itself: ${reasonCodes[unprovable.refusal]}`;
    return { verdict: 'deny', because };
  }
  // A failure that was forgiven, because what it rested on has changed, does not decide the next try.
  if (failure !== undefined && failure.count > 0)
    return { verdict: 'deny', because: `policy requires authentication and it failed: ${reasonCodes[failure.reason]}` };
  if (outcome.authType === 'spiffe-connection') {
    const because =
      'policy requires authentication of each connection: its first packet will be held while both sides prove themselves for it';
    return { verdict: 'on demand', because };
  }
  return {
    verdict: 'on demand',
    because: 'policy requires authentication; the first packet will be held while both sides prove themselves',
  };
}

/** Own endpoints of the pair: do they send and receive, and what they wait for if not. */
function fencesOf({ manager, endpoints, server }: Parts, identities: readonly SecurityIdentity[]) {
  const names = new Map(endpoints.view().map((e) => [e.endpoint, e.name]));
  return manager.endpoints().flatMap(({ endpoint, waitsFor }) =>
    identities.includes(endpoint.identity)
      ? [
          {
            endpoint: names.get(endpoint.endpoint) ?? String(endpoint.endpoint),
            identity: endpoint.identity,
            generation: String(endpoint.generation),
            open: endpoint.open,
            waitsFor: waitsFor.map((node) => server.nodes.byId(node)?.name ?? String(node)),
          },
        ]
      : [],
  );
}

/** To the other nodes on which the two may run: what vouches and proofs travel on. */
function channelsOf({ channels, server }: Parts, targets: readonly Target[]) {
  const ids = targets.flatMap((target) => (target.kind === 'workload' ? target.row.nodes : []));
  return [...new Set(ids)].flatMap((id) => {
    const node = server.nodes.bySpiffeId(id);
    if (node === undefined || id === server.node.info.spiffeId) return [];
    const channel = channels.get(node);
    const state = channel === undefined ? 'closed' : 'open';
    return [
      {
        node: node.id,
        nodeName: node.name,
        state,
        role: channel?.role,
        ...(channel === undefined ? failureView(channels.lastFailure(node)) : {}),
      },
    ];
  });
}

async function tunnelsTo({ path, server, clock }: Parts, nodes: ReadonlySet<number>) {
  const peers = await path.peers();
  return peers.flatMap(({ node, lastHandshake }) =>
    nodes.has(node)
      ? [{ node, nodeName: server.nodes.byId(node)?.name, lastHandshake: agoText(lastHandshake, clock.nowMs()) }]
      : [],
  );
}

/** What passes whatever the verdict says. */
function modeView({ config, enforcement }: Parts): { enforcement?: string } {
  const mode = enforcement.view().stopped ? 'stopped' : config.enforcement;
  return mode === 'enforce'
    ? {}
    : { enforcement: `enforcement is ${mode}: whatever the verdict, the packet passes and is counted` };
}

function ruleView({ policy }: Parts, index: number) {
  const rule = policy.rule(index);
  if (rule === undefined) return 'none';
  const { policy: name, file, line, path, direction, action, enforcement } = rule;
  return { policy: name, file, line, path, direction, action, ...(enforcement === 'observe' ? { enforcement } : {}) };
}

function identityOf(target: Target): SecurityIdentity {
  if (target.kind === 'workload') return target.row.identity;
  return target.kind === 'nobody' ? securityIdentity(0) : target.identity;
}

function side(target: Target) {
  switch (target.kind) {
    case 'workload': {
      const { spiffeId, identity, labels, nodes } = target.row;
      return { spiffeId, identity, labels, nodes };
    }
    case 'entity':
      return { entity: target.entity, identity: target.identity, address: target.address };
    case 'cidr':
      return { entity: 'world', identity: target.identity, address: target.address };
    case 'nobody':
      return { entity: 'nobody', address: target.address };
  }
}
