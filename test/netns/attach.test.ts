/** Where our programs stand among those of others, what `datapath verify` says of it, and how soon a new veth has them. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { stringify } from 'yaml';
import { type LoadedObject, native, type TcDirection } from '../../native/index.ts';
import { attribute, cString, encodeMessage, NETLINK_ROUTE, NLM_F, nested } from '../../src/base/netlink.ts';
import type { AttachMode } from '../../src/datapath/attach.ts';
import { deleteClsact, hasClsact, listFilters } from '../../src/datapath/clsact.ts';
import { buildTags, inspectNode } from '../../src/datapath/inspect.ts';
import { ABI_VERSION } from '../../src/datapath/layout.ts';
import { detachNode } from '../../src/datapath/lifecycle.ts';
import { readPinned } from '../../src/datapath/pinned.ts';
import { verifyNode } from '../../src/datapath/verify.ts';
import { SLOW } from '../support/slow.ts';
import { clang } from '../unit/native/clang.ts';
import { DatapathClient } from './support/datapath-client.ts';
import { NODE, OBJECT, Pair, PORTS, policyOf, prefixes } from './support/pair.ts';

const modes: readonly AttachMode[] = native().tcxSupported() ? ['tcx', 'clsact'] : ['clsact'];
const soon = { timeout: 2000 * SLOW, interval: 5 };

let directory: string;
let theirs: LoadedObject;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'cs-attach-'));
  const path = join(directory, 'their.o');
  const source = join(import.meta.dirname, 'support/their.bpf.c');
  const headers = `/usr/include/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`;
  execFileSync(clang(), ['-target', 'bpf', '-g', '-O2', '-idirafter', headers, '-c', source, '-o', path]);
  theirs = native().loadObject({ path });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe.each(modes)('by %s', (mode) => {
  let pair: Pair;
  let datapath: DatapathClient;
  const opened: number[] = [];

  beforeAll(async () => {
    pair = new Pair('l-attach');
    await pair.flood();
  });
  afterAll(() => pair.close());

  const start = async () => {
    datapath = await DatapathClient.start(pair.spaces, 'node', pair.options({ attach: mode }));
    await datapath.call('attachUnderlay', pair.ifindex('u0'));
    await datapath.call('setPrefixes', prefixes);
    await datapath.call('setPolicy', policyOf(PORTS.allowed));
    for (const name of ['a', 'b'] as const) await datapath.call('putEndpoint', pair.endpoint(name));
  };
  beforeEach(start);
  afterEach(async () => {
    await datapath.kill();
    for (const fd of opened.splice(0)) native().closeFd(fd);
    pair.inNode(() => detachNode({ bpffs: pair.spaces.bpffs, node: NODE }));
  });

  const settings = () => ({
    bpffs: pair.spaces.bpffs,
    node: NODE,
    underlay: 'u0',
    tunnelDevice: undefined,
    holdDevice: 'cs-hold0',
    endpoints: [
      { name: 'a', interface: 'v-a' },
      { name: 'b', interface: 'v-b' },
    ],
  });
  const verify = () => pair.inNode(() => verifyNode(inspectNode(settings()), buildTags(OBJECT)));
  const problems = () => verify().problems.map(({ code, text }) => `${code}: ${text}`);
  const chain = (interfaceName: string, direction: TcDirection) =>
    pair.inNode(() => {
      const ifindex = native().ifIndex(interfaceName);
      const ids =
        mode === 'tcx'
          ? native()
              .tcxQuery(ifindex, direction)
              .map(({ programId }) => programId)
          : listFilters(ifindex, direction).map(({ programId }) => programId!);
      return ids.map((id) => {
        const fd = native().progById(id)!;
        opened.push(fd);
        return native().progInfo(fd).name;
      });
    });
  /** Before whatever stands on the hook. */
  const attachTheirs = (
    program: 'their_next' | 'their_ok',
    interfaceName: string,
    direction: TcDirection,
    priority = 10,
  ) =>
    pair.inNode(() => {
      const fd = theirs.programs[program]!;
      const ifindex = native().ifIndex(interfaceName);
      if (mode === 'tcx') opened.push(native().tcxAttach(fd, ifindex, direction));
      else native().clsactAttach(fd, ifindex, direction, priority, 1);
    });
  const theirCount = (which: number) => {
    const key = Buffer.alloc(4);
    key.writeUInt32LE(which);
    return native().mapLookup(theirs.maps.their_counts!.fd, key)!.readBigUInt64LE(0);
  };

  test('all is well after a start, and a killed process changes nothing of it', async () => {
    expect(verify()).toMatchObject({ ok: true, problems: [], notes: [] });
    await datapath.kill();
    const verdict = verify();
    expect(verdict.problems).toEqual([]);
    expect(verdict.notes.map(({ code }) => code)).toEqual(['agent-down', 'absent']); // the hold device ended with it
  });

  if (mode === 'tcx')
    test('ours stand before those of others, which keep their order and still have their say', async () => {
      await datapath.kill();
      pair.inNode(() => detachNode({ bpffs: pair.spaces.bpffs, node: NODE }));
      attachTheirs('their_ok', 'v-b', 'egress');
      attachTheirs('their_next', 'v-b', 'egress');
      await start();
      expect(chain('v-b', 'egress')).toEqual(['to_workload', 'their_next', 'their_ok']);
      expect(problems()).toEqual([]);
      const before = [theirCount(0), theirCount(1)];
      await pair.arrived();
      await vi.waitFor(async () => expect((await pair.arrived())[`a>b ${PORTS.allowed}`]).toBeGreaterThan(5), soon);
      expect(theirCount(0)).toBeGreaterThan(before[0]!);
      expect(theirCount(1)).toBeGreaterThan(before[1]!);
      // What ours drop they never see, and their OK lets nothing in.
      expect((await pair.arrived())[`node>b ${PORTS.never}`]).toBeUndefined();
      await datapath.kill();
      pair.inNode(() => detachNode({ bpffs: pair.spaces.bpffs, node: NODE }));
      expect(chain('v-b', 'egress')).toEqual(['their_next', 'their_ok']);
    });

  test('who comes before ours later is told, by name', async () => {
    attachTheirs('their_ok', 'v-b', 'egress');
    expect(chain('v-b', 'egress')).toEqual(['their_ok', 'to_workload']);
    expect(problems()).toEqual([
      expect.stringMatching(
        /^not-first: to_workload on v-b \(egress\) is not first: their_ok \(\w+, program \d+\) decides before it$/,
      ),
    ]);
    if (mode === 'tcx') {
      // The next agent stands first again, and theirs is still there.
      await datapath.kill();
      await start();
      expect(chain('v-b', 'egress')).toEqual(['to_workload', 'their_ok']);
      expect(problems()).toEqual([]);
    } else {
      pair.inNode(() => native().clsactDetach(native().ifIndex('v-b'), 'egress', 10, 1));
      expect(problems()).toEqual([]);
    }
  });

  test('what is missing, of another build, stale or not ours is named', async () => {
    const links = join(pair.spaces.bpffs, `countersign/v${ABI_VERSION}/pair_test/links`);
    const ifindex = pair.ifindex('v-a');
    if (mode === 'tcx') {
      const link = native().objGet(join(links, `tcx-from_workload-${ifindex}`));
      native().linkDetach(link);
      native().closeFd(link);
      expect(problems()).toEqual([
        expect.stringMatching(
          /^missing: from_workload on v-a \(ingress\) is missing: endpoint a is not protected there$/,
        ),
        expect.stringMatching(/^stale: the pin tcx-from_workload-\d+ holds nothing any more/),
      ]);
      const other = native().objGet(join(links, `tcx-to_workload-${pair.ifindex('v-b')}`));
      native().linkUpdate(other, theirs.programs.their_next!);
      native().closeFd(other);
      expect(problems().slice(1, 3)).toEqual([
        expect.stringMatching(
          /^other-build: to_workload on v-b \(egress\) is of another build \(tag [0-9a-f]{16}, this build has/,
        ),
        expect.stringMatching(/^foreign-maps: to_workload on v-b \(egress\) reads maps that are not pinned here/),
      ]);
    } else {
      pair.inNode(() => native().clsactDetach(ifindex, 'ingress', 0xc5, 1));
      expect(problems()).toEqual([
        expect.stringMatching(
          /^missing: from_workload on v-a \(ingress\) is missing: endpoint a is not protected there$/,
        ),
      ]);
    }
    native().objPin(theirs.programs.their_next!, join(links, 'something'));
    expect(problems()).toContain('unknown: the pin something is none of ours');
    rmSync(join(links, 'something'));
    // The next start mends what is ours.
    await datapath.kill();
    await start();
    expect(problems()).toEqual([]);
  });

  test('the command line says the same, with the agent down, by its exit status', async () => {
    const config = join(directory, 'agent.yaml');
    const document = {
      apiVersion: 'countersign.dev/v1alpha1',
      kind: 'AgentConfig',
      trustDomain: 'example.org',
      node: { name: NODE, underlay: 'u0' },
      server: { address: '192.0.2.1:8443', bundleFile: '/nowhere' },
      dataDir: join(directory, 'data'),
      bpffs: pair.spaces.bpffs,
      peer: { listen: ['192.0.2.2:4250'] },
      policies: { directory: '/nowhere' },
      authentication: { allowUnboundPath: true },
      encryption: { enabled: false },
      endpoints: ['a', 'b'].map((name, i) => ({
        name,
        interface: `v-${name}`,
        addresses: [`10.83.${i + 1}.2`],
        spiffeId: `spiffe://example.org/${name}`,
      })),
    };
    writeFileSync(config, stringify(document));
    await datapath.kill();
    const cli = (args: string) => {
      const bin = join(import.meta.dirname, '../../bin/countersign');
      const out = pair.spaces.exec('node', `set +e; ${bin} ${args} --config ${config} -o json; echo "exit $?"`);
      const [json, exit] = out.trim().split(/(?:^|\n)exit /);
      return { exit: Number(exit), said: json === '' ? undefined : JSON.parse(json!) };
    };
    expect(cli('datapath verify')).toMatchObject({ exit: 0, said: { ok: true } });
    const status = cli('datapath status').said;
    expect(status).toMatchObject({ node: NODE, agent: 'down', enforcement: 'enforce', otherVersions: [] });
    expect(status.attachments).toContainEqual(
      expect.objectContaining({
        interface: 'v-b',
        program: 'to_workload',
        mode,
        position: 1,
        programs: 1,
        of: 'endpoint b',
      }),
    );
    expect(status.maps).toContainEqual(expect.objectContaining({ name: 'cs_endpoints', entries: 2 }));

    // Break-glass with neither a server nor an agent, and its end.
    expect(cli('enforcement stop --reason "a fire drill"')).toEqual({
      exit: 0,
      said: { enforcement: 'stopped', by: 'command' },
    });
    await pair.arrived();
    await vi.waitFor(async () => expect((await pair.arrived())[`node>b ${PORTS.never}`]).toBeGreaterThan(0), soon);
    expect(cli('datapath verify')).toMatchObject({ exit: 1, said: { problems: [{ code: 'stopped' }] } });
    expect(cli('enforcement status')).toMatchObject({
      exit: 1,
      said: { enforcement: 'stopped', reason: 'a fire drill', agent: 'down' },
    });
    expect(cli('enforcement start')).toMatchObject({ exit: 0, said: { enforcement: 'started' } });
    await pair.arrived();
    await new Promise((resolve) => setTimeout(resolve, 50 * SLOW));
    expect((await pair.arrived())[`node>b ${PORTS.never}`]).toBeUndefined();

    expect(cli('datapath detach')).toEqual({ exit: 2, said: undefined });
    expect(cli('datapath detach --yes')).toEqual({ exit: 0, said: { detached: true } });
    expect(cli('datapath verify').exit).toBe(1);
    expect(cli('datapath detach --yes').said).toEqual({ detached: true });
  });

  test('a new process swaps the programs in place: not a packet is lost, none is let through, and flows go on', async () => {
    const before = chainIds('v-b');
    await vi.waitFor(async () => expect((await pair.arrived())[`a>b ${PORTS.allowed}`]).toBeGreaterThan(0), soon);
    await pair.traffic();
    for (let i = 0; i < 3; i++) {
      await datapath.kill();
      await start();
    }
    const traffic = await pair.traffic();
    expect(traffic[`a>b ${PORTS.allowed}`]).toMatchObject({
      count: expect.toSatisfy((n: number) => n > 300),
      missing: 0,
    });
    expect(Object.keys(traffic)).toEqual([`a>b ${PORTS.allowed}`]);
    const after = chainIds('v-b');
    expect(after.programId).not.toBe(before.programId);
    expect(after.linkId).toBe(before.linkId);
  });
  const chainIds = (name: string) =>
    pair.inNode(() => {
      const ifindex = native().ifIndex(name);
      if (mode === 'tcx') return native().tcxQuery(ifindex, 'egress')[0]!;
      return { programId: listFilters(ifindex, 'egress')[0]!.programId!, linkId: 0 };
    });

  test('a second agent with the same node name is refused, in another namespace and with another hold device too', async () => {
    await expect(
      DatapathClient.start(pair.spaces, 'a', pair.options({ attach: mode, holdDevice: 'cs-hold1' })),
    ).rejects.toThrow('does another agent run with this node name');
    expect(() => pair.inNode(() => detachNode({ bpffs: pair.spaces.bpffs, node: NODE }))).toThrow('is running');
  });

  if (mode === 'clsact')
    test('filters of others, and a qdisc that holds them, stay; a qdisc of ours goes', async () => {
      attachTheirs('their_next', 'v-b', 'egress', 300);
      await datapath.kill();
      pair.inNode(() => {
        detachNode({ bpffs: pair.spaces.bpffs, node: NODE });
        expect(hasClsact(native().ifIndex('v-a'))).toBe(false);
        expect(hasClsact(native().ifIndex('v-b'))).toBe(true);
        expect(listFilters(native().ifIndex('v-b'), 'egress').map(({ name }) => name)).toHaveLength(1);
        deleteClsact(native().ifIndex('v-b'));
      });
      // One that somebody else made stays although it is empty.
      pair.spaces.exec('node', 'tc qdisc add dev v-a clsact');
      await start();
      await datapath.kill();
      pair.inNode(() => {
        detachNode({ bpffs: pair.spaces.bpffs, node: NODE });
        expect(hasClsact(native().ifIndex('v-a'))).toBe(true);
        expect(hasClsact(native().ifIndex('v-b'))).toBe(false);
        deleteClsact(native().ifIndex('v-a'));
      });
    });
});

describe('veths that come and go', () => {
  let pair: Pair;
  const names = Array.from({ length: 20 }, (_, i) => `w${i}`);
  interface Told {
    readonly kind: string;
    readonly endpoint: string;
    readonly atNs: bigint;
  }

  beforeEach(() => {
    pair = new Pair('l-veth');
  });

  afterEach(() => pair.close());

  const follow = async () => {
    const configs = names.map((name, i) => ({
      name,
      interface: `v-${name}`,
      addresses: [`10.83.100.${i + 1}`],
      spiffeId: `spiffe://example.org/${name}`,
    }));
    const argument = JSON.stringify({ options: pair.options(), configs });
    const script = join(import.meta.dirname, 'support/interfaces-host.ts');
    const child = pair.spaces.spawn('node', [process.execPath, script, argument], true);
    const told: Told[] = [];
    child.on('message', (message: Told) => {
      if (message.kind !== undefined) told.push(message);
    });
    await once(child, 'message');
    return { child, told };
  };
  /** `ip link add v-NAME type veth peer name p-NAME`, without a process. When it is there, CLOCK_BOOTTIME. */
  const addVeth = (name: string): bigint =>
    pair.inNode(() => {
      const ifinfo = Buffer.alloc(16);
      const peer = nested(1, ifinfo, attribute(3, cString(`p-${name}`)));
      const info = nested(18, attribute(1, Buffer.from('veth')), nested(2, peer));
      const flags = NLM_F.request | NLM_F.ack | NLM_F.create | NLM_F.excl;
      native().netlinkRequest(
        NETLINK_ROUTE,
        encodeMessage(16, flags, ifinfo, attribute(3, cString(`v-${name}`)), info),
      );
      return native().bootTimeNs();
    });

  test('one that is created has its programs within milliseconds, one that goes is forgotten', async () => {
    const { told } = await follow();
    const tookMs: number[] = [];
    for (const name of names) {
      const atNs = addVeth(name);
      await vi.waitFor(() => expect(told.at(-1)).toMatchObject({ kind: 'endpoint.opened', endpoint: name }), soon);
      tookMs.push(Number(told.at(-1)!.atNs - atNs) / 1e6);
    }
    tookMs.sort((x, y) => x - y);
    console.log(`ip link add to attached: median ${tookMs[10]!.toFixed(1)} ms, worst ${tookMs.at(-1)!.toFixed(1)} ms`);
    // Of it the kernel waits twice until no packet is under way through the old chain (synchronize_rcu, 8 to 15 ms each).
    expect(tookMs[10]).toBeLessThan(150 * SLOW);
    expect(readPinned(pair.spaces.bpffs, NODE).endpoints).toHaveLength(names.length);
    for (const name of names) pair.spaces.exec('node', `ip link del v-${name}`);
    await vi.waitFor(
      () => expect(told.filter(({ kind }) => kind === 'endpoint.closed')).toHaveLength(names.length),
      soon,
    );
    expect(readPinned(pair.spaces.bpffs, NODE).endpoints).toEqual([]);
    expect(readPinned(pair.spaces.bpffs, NODE).addresses).toEqual([]);
    expect(
      pair.spaces.exec('node', `ls ${pair.spaces.bpffs}/countersign/v${ABI_VERSION}/pair_test/links`).trim(),
    ).toMatch(/^\S*from_hold\S*$/);
  });

  test('one that is made anew under the same name is a new endpoint; a renamed one is found under its new name', async () => {
    const { told } = await follow();
    addVeth('w1');
    await vi.waitFor(() => expect(told).toHaveLength(1), soon);
    pair.spaces.exec(
      'node',
      'ip link del v-w1; ip link add v-w1 type veth peer name p-w1; ip link set dev v-w1 name v-w2',
    );
    await vi.waitFor(() => expect(told.at(-1)).toMatchObject({ kind: 'endpoint.opened', endpoint: 'w2' }), soon);
    expect(readPinned(pair.spaces.bpffs, NODE).endpoints.map(({ ifindex }) => ifindex)).toEqual([pair.ifindex('v-w2')]);
  });

  test('when more comes than can be followed, everything is read again', async () => {
    const { child, told } = await follow();
    child.send({ blockMs: 3000 * SLOW });
    const others = Array.from({ length: 150 }, (_, i) => `link add x${i} type veth peer name y${i}`);
    const gone = Array.from({ length: 150 }, (_, i) => `link del x${i}`);
    const batch = [...others, ...gone, ...names.map((name) => `link add v-${name} type veth peer name p-${name}`)];
    writeFileSync(join(directory, 'batch'), `${batch.join('\n')}\n`);
    let said = '';
    child.stderr!.on('data', (data) => {
      said += data;
    });
    pair.spaces.exec('node', `ip -batch ${join(directory, 'batch')}`);
    await vi.waitFor(() => expect(told.filter(({ kind }) => kind === 'endpoint.opened')).toHaveLength(names.length), {
      timeout: 10_000 * SLOW,
    });
    await vi.waitFor(() => expect(said).toContain('faster than they could be followed'), soon);
  });
});
