/** Do the table and the random packets find faults? Plants them one by one in a copy of the kernel programs, and says what found
 *  each:
 *
 *     node test/fuzz/mutants.ts [NAME…] */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { unavailable } from '../bpf/support/kernel.ts';
import { families } from '../bpf/support/world.ts';
import { groups } from '../bpf/table/groups.ts';
import { byKernel, expected, inWords } from '../bpf/table/run.ts';
import { Machine } from './machine.ts';
import { play, scenarioOf } from './scenario.ts';

interface Mutant {
  readonly name: string;
  /** Below bpf/lib. */
  readonly file: string;
  readonly from: string | RegExp;
  readonly to: string;
}

const mutants: readonly Mutant[] = [
  {
    name: 'a lease never ends',
    file: 'identity.h',
    from: 'return now >= o->lease_ns ? CS_DROP_LEASE_EXPIRED : 0;',
    to: 'return 0;',
  },
  {
    name: 'a flow’s proof serves another one later',
    file: 'auth.h',
    from: '((proof->flags & CS_AUTH_TAKEN) && !c->flow_proven)',
    to: '0',
  },
  {
    name: 'a flow that runs does not find its own proof',
    file: 'auth.h',
    from: '(proof->flags & CS_AUTH_TAKEN) && !c->flow_proven',
    to: 'proof->flags & CS_AUTH_TAKEN',
  },
  {
    name: 'a flow’s proof is for whoever has the address',
    file: 'auth.h',
    from: 'proof->remote != remote_identity ||',
    to: '',
  },
  {
    name: 'a flow’s proof is of any node',
    file: 'auth.h',
    from: 'proof->remote_node != remote_node ||',
    to: '',
  },
  {
    name: 'the pair’s proof does for each flow',
    file: 'auth.h',
    from: 'if (c->auth_type == CS_AUTH_CONNECTION)\n\t\tflow_proof_read',
    to: 'if (0)\n\t\tflow_proof_read',
  },
  {
    name: 'a flow that only observation let through has taken its proof',
    file: 'flow.h',
    from: 'c->flow_proven ? CS_FLOW_PROVEN : 0',
    to: 'c->auth_type == CS_AUTH_CONNECTION ? CS_FLOW_PROVEN : 0',
  },
  {
    name: 'a fence towards a node lets pass',
    file: 'fence.h',
    from: '? CS_DROP_FENCED : 0;',
    to: '? 0 : 0;',
  },
  {
    name: 'a fence towards one node is one towards all',
    file: 'fence.h',
    from: '.node = remote->node',
    to: '.node = 7',
  },
  {
    name: 'a fence of one endpoint is everybody’s',
    file: 'fence.h',
    from: '.endpoint = c->endpoint',
    to: '.endpoint = 5',
  },
  {
    name: 'nobody’s addresses in a cluster prefix are the world',
    file: 'identity.h',
    from: 'if (prefix->flags & CS_PREFIX_CLUSTER) {',
    to: 'if (0) {',
  },
  {
    name: 'a later fragment needs no first',
    file: 'fragment.h',
    from: 'p->reason = CS_DROP_FRAGMENT_NO_FIRST;',
    to: ';',
  },
  {
    name: 'a later fragment may lie in the header',
    file: 'fragment.h',
    from: 'if (p->fragment_offset < f->head) {',
    to: 'if (0) {',
  },
  {
    name: 'the port mask is one bit too short',
    file: 'policy.h',
    from: '(0xffff0000u >> n)',
    to: '(0xfffe0000u >> n)',
  },
  {
    name: 'the shortest port prefix first',
    file: 'policy.h',
    from: 'for (int n = CS_PORT_BITS; n >= 0; n--) {',
    to: 'for (int n = 0; n <= CS_PORT_BITS; n++) {',
  },
  {
    name: 'policy is looked up in slot 0',
    file: 'policy.h',
    from: 'key.slot = slot;',
    to: 'key.slot = 0;',
  },
  {
    name: 'a deny that some rule says is an allow',
    file: 'policy.h',
    from: 'if (policy->verdict != CS_POLICY_ALLOW)',
    to: 'if (policy->verdict != CS_POLICY_ALLOW && !policy->rule)',
  },
  {
    name: 'a proof of any epoch will do',
    file: 'auth.h',
    from: /if \(\S*epoch < cfg->epoch\)/,
    to: 'if (0)',
  },
  {
    name: 'a proof never ends',
    file: 'auth.h',
    from: /if \(c->now >= \S+\)\n\t\treturn CS_DROP_AUTH_EXPIRED;/,
    to: '',
  },
  {
    name: 'a proof of any node will do',
    file: 'auth.h',
    from: '.remote_node = remote->node,',
    to: '.remote_node = 0,',
  },
  {
    name: 'a flow outlives its revision',
    file: 'flow.h',
    from: 'return flow->revision == cfg->revision && ',
    to: 'return ',
  },
  {
    name: 'a flow’s packets may come from anywhere',
    file: 'flow.h',
    from: 'if (c->direction == CS_INGRESS && flow->origin != mark >> 16)',
    to: 'if (0)',
  },
  {
    name: 'a server may open to its client over the client’s flow',
    file: 'flow.h',
    from: '(flow->direction != c->direction || flow_is_over(flow->state))',
    to: 'flow_is_over(flow->state)',
  },
  {
    name: 'the short way does not ask where a packet came from',
    file: 'established.h',
    from: 'direction == CS_INGRESS && flow->origin != skb->mark >> 16',
    to: '0',
  },
  {
    name: 'the short way takes what is only observed',
    file: 'established.h',
    from: 'flow->flags & CS_FLOW_OBSERVED ||',
    to: '',
  },
  {
    name: 'the short way takes fragments',
    file: 'established.h',
    from: 'ip->fragment & bpf_htons(CS_IPV4_MORE_FRAGMENTS | CS_IPV4_FRAGMENT_OFFSET)',
    to: '0',
  },
  {
    name: 'the short way does not see a flow end',
    file: 'established.h',
    from: '(CS_TCP_FIN | CS_TCP_SYN | CS_TCP_RST | CS_TCP_ACK)',
    to: 'CS_TCP_ACK',
  },
  {
    name: 'the short way believes a UDP length that the packet has not',
    file: 'established.h',
    from: 'header >= CS_UDP_HEADER && header <= length;',
    to: 'header >= CS_UDP_HEADER;',
  },
  {
    name: 'the short way does not write when a flow was last used',
    file: 'established.h',
    from: '(__s64)(tick - flow->last_ns) > (__s64)CS_FLOW_TOUCH ||',
    to: '',
  },
  {
    name: 'the short way takes flows in any state',
    file: 'state.h',
    from: 'return state == CS_FLOW_ESTABLISHED || state == CS_FLOW_UDP_REPLIED || (state == CS_FLOW_UDP_UNREPLIED && forth);',
    to: 'return true;',
  },
  {
    name: 'an endpoint inherits the flows of its interface',
    file: 'verdict.h',
    from: 'if (flow && flow->endpoint != c->endpoint)',
    to: 'if (0)',
  },
  {
    name: 'a SYN-ACK of no flow begins one',
    file: 'state.h',
    from: '[CS_STEP_TCP_SYN_ACK] = CS_TCP_ROW(__, __,',
    to: '[CS_STEP_TCP_SYN_ACK] = CS_TCP_ROW(SR, __,',
  },
  {
    name: 'UDP without a reply lives a minute',
    file: 'state.h',
    from: '[CS_FLOW_UDP_UNREPLIED] = 30 *',
    to: '[CS_FLOW_UDP_UNREPLIED] = 60 *',
  },
  {
    name: 'the stamp need not be the source’s',
    file: 'origin.h',
    from: 'if (!owner_is_endpoint(source, CS_MARK_ENDPOINT(mark)))',
    to: 'if (0)',
  },
  {
    name: 'only loose source routes are dropped',
    file: 'options.h',
    from: 'type == CS_OPTION_LSRR || type == CS_OPTION_SSRR',
    to: 'type == CS_OPTION_LSRR',
  },
  {
    name: 'a routing header may have segments left',
    file: 'extension.h',
    from: 'if (header[2] == 0 || header[3])',
    to: 'if (header[2] == 0)',
  },
  {
    name: 'SYN with FIN is a SYN',
    file: 'tcp.h',
    from: '(CS_TCP_MAY(CS_TCP_SYN) | ',
    to: '(CS_TCP_MAY(CS_TCP_SYN) | CS_TCP_MAY(CS_TCP_SYN | CS_TCP_FIN) | ',
  },
  {
    name: 'a neighbour advertisement may name any target',
    file: 'neighbour.h',
    from: 'if (advertises && !addr_is_link_local(&nd.target)',
    to: 'if (0 && !addr_is_link_local(&nd.target)',
  },
  {
    name: 'the hold queue takes one more',
    file: 'hold.h',
    from: '+ packets <=\n',
    to: '+ packets <= 1 +\n',
  },
  {
    name: 'what came back from waiting waits again',
    file: 'workload.h',
    from: 'flow_of(&p, &c, c.now), false)',
    to: 'flow_of(&p, &c, c.now), true)',
  },
  {
    name: 'the source may be encrypted elsewhere',
    file: 'path.h',
    from: 'source.encrypt || owner_needs_tunnel(cfg, &destination)',
    to: 'owner_needs_tunnel(cfg, &destination)',
  },
];

/** Scenarios of 60 packets that a fault has time to be found in. */
const SCENARIOS = 1500;

function foundByTable(machine: Machine): string | undefined {
  let found: string | undefined;
  let rows = 0;
  for (const row of Object.values(groups).flat()) {
    for (const family of families.filter((f) => row.families.includes(f.name))) {
      if (inWords(byKernel(row, family, machine)) === inWords(expected(row, family))) continue;
      found ??= `${row.text} (${family.name})`;
      rows++;
    }
  }
  return found === undefined ? undefined : `${rows} verdicts, first ${found}`;
}

function foundByFuzz(machine: Machine): number | undefined {
  for (let n = 1; n <= SCENARIOS; n++) {
    const scenario = scenarioOf(n, 60);
    if (play(scenario, machine) !== undefined && play(scenario, machine) !== undefined) return n;
  }
  return undefined;
}

const source = join(import.meta.dirname, '../../bpf');

/** @returns where the object is. */
function build(mutant: Mutant | undefined, folder: string): string {
  const copy = join(folder, 'bpf');
  rmSync(copy, { recursive: true, force: true });
  cpSync(source, copy, { recursive: true });
  if (mutant !== undefined) {
    const path = join(copy, 'lib', mutant.file);
    const text = readFileSync(path, 'utf8');
    const changed = text.replace(mutant.from, mutant.to);
    if (changed === text) throw new Error(`${mutant.name}: bpf/lib/${mutant.file} has no longer ${mutant.from}`);
    writeFileSync(path, changed);
  }
  // A fault may leave something unused.
  const makefile = join(copy, 'Makefile');
  writeFileSync(makefile, readFileSync(makefile, 'utf8').replace('-Werror', ''));
  const out = join(folder, 'out');
  execFileSync('make', ['-s', '-C', copy, `OUT=${out}`], { stdio: ['ignore', 'inherit', 'ignore'] });
  return join(out, 'datapath.bpf.o');
}

if (unavailable !== undefined) {
  console.error(`mutants: ${unavailable}`);
  process.exit(2);
}
const wanted = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), 'countersign-mutants-'));
let survivors = 0;
try {
  for (const mutant of [undefined, ...mutants.filter((m) => wanted.length === 0 || wanted.includes(m.name))]) {
    const machine = new Machine(build(mutant, folder));
    const table = foundByTable(machine);
    const fuzz = foundByFuzz(machine);
    machine.close();
    const sound = mutant === undefined;
    if (sound !== (table === undefined && fuzz === undefined)) survivors++;
    console.log(
      `${mutant?.name ?? '(as it is)'}\n  table: ${table ?? 'nothing'}\n  random: ${fuzz === undefined ? 'nothing' : `scenario ${fuzz}`}`,
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
if (survivors > 0) console.log(`mutants: ${survivors} not as it should be`);
process.exit(survivors === 0 ? 0 : 1);
