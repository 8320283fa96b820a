/** `countersign explain`: would a packet pass, and the whole chain of reasons from identities to the last failure. */
import type { Command } from 'commander';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { agentClient, call } from '../admin-client.ts';
import { type CommonOptions, onAgent, portOf } from '../context.ts';
import { printJson, seconds, table } from '../output.ts';

interface Side {
  readonly spiffeId?: string;
  readonly identity?: number;
  readonly entity?: string;
  readonly address?: string;
}

interface Rule {
  readonly policy: string;
  readonly file: string;
  readonly line: number;
  readonly path: string;
  readonly action: string;
}

interface Policy {
  readonly egress: string;
  readonly ingress: string;
  readonly authentication: string;
  readonly rule: Rule | 'none';
}

/** As docs/cli.md describes it. Of somebody whom no node vouches for there is nothing but the sides. */
interface Explanation {
  readonly verdict: string;
  readonly because: string;
  readonly from: Side;
  readonly to: Side;
  readonly policy?: Policy;
  readonly observed?: { readonly verdict: string; readonly because: string };
  readonly enforcement?: string;
  readonly vouches?: readonly {
    address: string;
    identity: number;
    nodeName?: string;
    node: number;
    generation: string;
    leaseLeftMs: number;
  }[];
  readonly fences?: readonly { endpoint: string; open: boolean; waitsFor: readonly string[] }[];
  readonly channels?: readonly {
    node: number;
    nodeName?: string;
    state: string;
    role?: string;
    lastFailure?: { reason: string; text: string; retryInMs: number };
  }[];
  readonly authenticators?: readonly { nodeName?: string; node: number; remote: number; onChannel: boolean }[];
  readonly proofs?: readonly {
    local: number;
    remote: number;
    remoteNode: number;
    remoteNodeName?: string;
    expiresInMs: number;
    adopted: boolean;
    flow?: string;
  }[];
  readonly tunnel?: string;
  readonly tunnels?: readonly { nodeName?: string; node: number; lastHandshake: string }[];
  readonly ownSvid?: readonly { identity: number; refusal?: string }[];
  readonly lastFailure?: { reason: string; text: string; atMs: number; count: number; retryInMs: number };
  readonly lastSuccess?: { atMs: number; handshakeMs: number };
}

export function addExplain(program: Command): void {
  onAgent(
    program
      .command('explain <from> <to>')
      .description('would a packet pass, and why: identity, policy, vouch, fence, proof, tunnel, last failure'),
  )
    .option('--port <port>', "destination port; of icmp and icmpv6 the message's type", portOf, 0)
    .option('--protocol <name>', 'tcp, udp, sctp, icmp or icmpv6', 'tcp')
    .addHelpText(
      'after',
      '\nFROM and TO are endpoint names, SPIFFE IDs, addresses (of anybody), or host, world, remote-node.\n' +
        'Exit status 1 when the answer is no.',
    )
    .action(async (from: string, to: string, options: CommonOptions & { port: number; protocol: string }) => {
      const { port, protocol } = options;
      const client = agentClient(options.socket);
      const { json } = await call<JsonReply>(client, (done) => client.explain({ from, to, port, protocol }, done));
      const reply = JSON.parse(json) as Explanation;
      if (options.output === 'json') printJson(reply);
      else console.log(explanationText(reply));
      if (reply.verdict === 'deny') process.exitCode = EXIT.no;
    });
}

/** One line for each link of the chain, in the order in which a packet meets them. */
export function explanationText(e: Explanation): string {
  const rows: [string, string][] = [
    ['verdict', `${e.verdict}: ${e.because}`],
    ['from', sideText(e.from)],
    ['to', sideText(e.to)],
  ];
  const add = (name: string, texts: readonly string[] | undefined, none?: string): void => {
    for (const [i, text] of (texts ?? []).entries()) rows.push([i === 0 ? name : '', text]);
    if (texts?.length === 0 && none !== undefined) rows.push([name, none]);
  };
  const at = (nodeName: string | undefined, node: number) => (node === 0 ? 'this node' : (nodeName ?? `node ${node}`));
  if (e.policy !== undefined) add('policy', policyTexts(e.policy));
  if (e.observed !== undefined) rows.push(['observed', `${e.observed.verdict}: ${e.observed.because}`]);
  if (e.enforcement !== undefined) rows.push(['enforcement', e.enforcement]);
  add(
    'fence',
    e.fences?.map(({ endpoint, open, waitsFor }) => {
      const waits =
        waitsFor.length === 0
          ? ''
          : `; shut towards ${waitsFor.join(', ')}, which must let go of an earlier owner first`;
      return `${endpoint} ${open ? 'is open' : 'is shut'}${waits}`;
    }),
  );
  add(
    'channel',
    e.channels?.map(({ nodeName, node, state, role, lastFailure }) => {
      const to = `to ${at(nodeName, node)}: ${state}`;
      if (role !== undefined) return `${to}, as TLS ${role}`;
      return lastFailure === undefined
        ? `${to}, opened when needed`
        : `${to}: ${lastFailure.reason}: ${lastFailure.text}${again(lastFailure)}`;
    }),
  );
  add(
    'vouch',
    e.vouches?.map(
      (v) =>
        `${at(v.nodeName, v.node)} vouches for ${v.address} as ${v.identity}, generation ${v.generation}, ` +
        (v.leaseLeftMs > 0 ? `lease ${seconds(v.leaseLeftMs)} left` : 'lease run out'),
    ),
    'no other node vouches for either side',
  );
  add(
    'own SVID',
    e.ownSvid?.map(({ identity, refusal }) => `of ${identity}: ${refusal ?? 'there'}`),
  );
  add(
    'authenticators',
    e.authenticators?.map(
      (a) =>
        `of both sides ${a.onChannel ? 'stand' : 'are to be exchanged'} on the channel to ${at(a.nodeName, a.node)}`,
    ),
  );
  add(
    'auth entry',
    e.proofs?.map(
      (p) =>
        `${p.local} with ${p.remote} at ${at(p.remoteNodeName, p.remoteNode)}, ends in ${seconds(p.expiresInMs)}` +
        (p.flow === undefined ? '' : `, for ${p.flow} alone`) +
        (p.adopted ? ', of before the agent’s restart, not proven anew yet' : ''),
    ),
    'none',
  );
  if (e.tunnel !== undefined) {
    add(
      'tunnel',
      e.tunnels?.map(
        ({ nodeName, node, lastHandshake }) => `${e.tunnel} to ${at(nodeName, node)}, last handshake ${lastHandshake}`,
      ),
      e.tunnel,
    );
  }
  if (e.lastSuccess !== undefined)
    rows.push([
      'last proof',
      `${new Date(e.lastSuccess.atMs).toISOString()}, in ${e.lastSuccess.handshakeMs.toFixed(1)} ms`,
    ]);
  const failure = e.lastFailure;
  if (failure !== undefined) {
    const { reason, text, atMs } = failure;
    rows.push(['last failure', `${new Date(atMs).toISOString()}: ${reason}: ${text}${again(failure)}`]);
  } else if (e.policy !== undefined) rows.push(['last failure', 'none']);
  return table(['', ''], rows, '').split('\n').slice(1).join('\n');
}

function again({ retryInMs }: { readonly retryInMs: number }): string {
  return retryInMs > 0 ? `, tried again in ${seconds(retryInMs)}` : '';
}

function sideText({ spiffeId, identity, entity, address }: Side): string {
  const who = spiffeId ?? `${entity ?? 'identity'}${address === undefined ? '' : ` ${address}`}`;
  return identity === undefined ? who : `${who} (identity ${identity})`;
}

function policyTexts({ egress, ingress, authentication, rule }: Policy): string[] {
  const hooks = `egress ${egress}, ingress ${ingress}, authentication ${authentication}`;
  if (rule === 'none') return [hooks, 'no rule decides'];
  return [hooks, `${rule.file}:${rule.line} ${rule.policy} ${rule.path} (${rule.action})`];
}
