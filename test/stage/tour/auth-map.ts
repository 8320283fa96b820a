import type { Stage } from '../stage.ts';
import { Demands, type Step } from './step.ts';

interface AuthRow {
  readonly local: number;
  readonly remote: number;
  readonly remoteNode: number;
  readonly authType: string;
}

const key = (r: AuthRow) => `${r.local}>${r.remote}@${r.remoteNode}/${r.authType}`;

async function pinned(stage: Stage, node: string): Promise<AuthRow[]> {
  const reply = (await stage.cli(
    'auth',
    'list',
    '--pinned',
    '--bpffs',
    `${stage.dir}/bpf`,
    '--node',
    node,
    '-o',
    'json',
  )) as { entries: AuthRow[] };
  return reply.entries;
}

async function listed(stage: Stage, node: string): Promise<AuthRow[]> {
  return ((await stage.agentCli(node, 'auth', 'list')) as { entries: AuthRow[] }).entries;
}

export const authMap: Step = {
  name: 'auth_map',
  shows:
    "what both kernels hold as proven, read from the pinned maps, agrees with each other and with 'countersign auth list'",
  async run(stage) {
    const demands = new Demands();
    const [a, b, listA, listB] = await Promise.all([
      pinned(stage, 'node-a'),
      pinned(stage, 'node-b'),
      listed(stage, 'node-a'),
      listed(stage, 'node-b'),
    ]);
    const ids = (await stage.status('node-a')) as { node: { id: number } } | undefined;
    const idB = (await stage.status('node-b')) as { node: { id: number } } | undefined;
    const [nodeA, nodeB] = [ids?.node.id ?? 0, idB?.node.id ?? 0];
    // An entry (L, R, node B) on A must stand as (R, L, node A) on B, and the other way round.
    const mirror = (rows: readonly AuthRow[], peer: number, self: number) =>
      rows
        .filter((r) => r.remoteNode === peer)
        .map((r) => key({ ...r, local: r.remote, remote: r.local, remoteNode: self }))
        .sort();
    const own = (rows: readonly AuthRow[], peer: number) =>
      rows
        .filter((r) => r.remoteNode === peer)
        .map(key)
        .sort();
    const same = (x: readonly string[], y: readonly string[]) => x.join() === y.join();
    demands.that(a.length > 0, 'node-a holds no auth entry');
    demands.that(
      same(mirror(a, nodeB, nodeA), own(b, nodeA)),
      `node-a and node-b disagree: ${a.map(key)} / ${b.map(key)}`,
    );
    demands.that(same(a.map(key).sort(), listA.map(key).sort()), "node-a's map and 'auth list' disagree");
    demands.that(same(b.map(key).sort(), listB.map(key).sort()), "node-b's map and 'auth list' disagree");
    return demands.result({ entries_a: a.length, entries_b: b.length, agree: true }, [
      `node-a: ${a.map(key).join(', ')}`,
      `node-b: ${b.map(key).join(', ')}`,
    ]);
  },
};
