/**
 * Some dozens of nodes in one process, for a benchmark of another one: each with the real peer channels on an address of its own, the
 * real auth manager with its vouches and proofs, and SVIDs of its own; tables in memory in place of a kernel's. What they are comes
 * in a file; the parent asks for churn and figures over IPC.
 */
import { readFileSync } from 'node:fs';
import { type AuthManager, createAuthManager } from '../../../src/auth/manager.ts';
import type { PolicyDecisions } from '../../../src/auth/ports.ts';
import { err, ok } from '../../../src/base/errors.ts';
import { createLogger } from '../../../src/base/log.ts';
import { systemTimers } from '../../../src/base/timers.ts';
import type { PeerChannelEvents } from '../../../src/channel/peer-channel.ts';
import { type StartedPeerChannels, startPeerChannels } from '../../../src/channel/peer-channels.ts';
import { systemClock } from '../../../src/datapath/clock.ts';
import { parseAddress, parsePrefix, prefixContains } from '../../../src/model/address.ts';
import type { AddressEntry, AddressTable, AuthEntry, AuthKey, AuthTable } from '../../../src/model/datapath.ts';
import type { IdentityRow, NodeInfo, NodeTable, Svid } from '../../../src/model/identity.ts';
import {
  type IpAddress,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type SpiffeId,
  securityIdentity,
  type TrustDomain,
} from '../../../src/model/ids.ts';
import { nodeSpiffeId } from '../../../src/model/spiffe-id.ts';
import { privateKeyFromDer } from '../../../src/pki/keys.ts';
import type { NodeFact, PeerFacts, PeerReport, PeerRequest, SvidFact } from '../peer-facts.ts';

const facts = JSON.parse(readFileSync(process.argv[2]!, 'utf8')) as PeerFacts;
const trustDomain = facts.trustDomain as TrustDomain;
const bundle = { trustDomain, authorities: facts.authorities.map(bytes) };
const bundles = { bundleOf: (domain: TrustDomain) => (domain === trustDomain ? bundle : undefined) };
const clock = systemClock();
const log = createLogger('peers', 'warn');
const audit = { emit: () => {} };
const revocations = { isRevoked: () => false };

const target = infoOf(facts.target);
const nodes: NodeTable = {
  byName: (name) => (name === target.name ? target : undefined),
  byId: (id) => (id === target.id ? target : undefined),
  bySpiffeId: (id) => (id === target.spiffeId ? target : undefined),
  candidates: (address) => (target.prefixes.some((prefix) => prefixContains(prefix, address)) ? [target] : []),
  nodes: () => [target],
};
/** The target's workloads and those of the node itself: all that a node's policies tell apart here. */
const targetRows = facts.targetWorkloads.map((w) => rowOf(w, target.spiffeId));
const policy: PolicyDecisions = {
  decide: () => ({ verdict: 'allow', authType: 'spiffe', rule: 1 }),
  // As in the policies of the target: an app's endpoints authenticate with each other.
  authTypesOf: (a, b) => (a !== b && facts.apps[a] !== undefined && facts.apps[a] === facts.apps[b] ? ['spiffe'] : []),
};

interface Endpoint {
  readonly endpoint: number;
  readonly workload: SvidFact;
  readonly address: IpAddress;
}

class PeerNode {
  readonly #fact: PeerFacts['peers'][number];
  readonly #info: NodeInfo;
  readonly #endpoints: Endpoint[] = [];
  readonly #svids = new Map<SecurityIdentity, Svid>();
  #channels!: StartedPeerChannels;
  #manager!: AuthManager;
  #lastEndpoint = 0;
  #lastHost = 9;

  constructor(fact: PeerFacts['peers'][number]) {
    this.#fact = fact;
    this.#info = infoOf(fact);
    for (const workload of fact.workloads) this.#svids.set(securityIdentity(workload.identity), svidOf(workload));
  }

  async start(): Promise<void> {
    const events: PeerChannelEvents = {
      opened: (channel) => this.#manager.opened(channel),
      frame: (channel, type, body) => this.#manager.frame(channel, type, body),
      closed: (channel, reason) => this.#manager.closed(channel, reason),
    };
    const self = { info: this.#info, svid: svidOf(this.#fact) };
    const [listen] = this.#fact.peerAddresses.map((text) => text.split(':') as [string, string]);
    this.#channels = await startPeerChannels({
      self: () => self,
      trustDomain,
      nodes,
      bundles,
      revocations,
      listen: [{ address: listen![0], port: Number(listen![1]) }],
      clock,
      audit,
      log,
      events,
    });
    const rows = [...targetRows, ...this.#fact.workloads.map((w) => rowOf(w, this.#info.spiffeId))];
    const byIdentity = new Map(rows.map((row) => [row.identity, row]));
    const bySpiffeId = new Map(rows.map((row) => [row.spiffeId, row]));
    const options = {
      self: this.#info,
      firstLife: true,
      channels: this.#channels,
      hold: { release: () => 0, refuse: () => 0, forget: () => {}, waiting: () => [] },
      authTable: authTable(),
      addresses: addressTable(),
      identities: {
        byIdentity: (identity: SecurityIdentity) => byIdentity.get(identity),
        bySpiffeId: (id: SpiffeId) => bySpiffeId.get(id),
        rows: () => rows,
      },
      nodes,
      svids: {
        svidOf: (identity: SecurityIdentity) => {
          const svid = this.#svids.get(identity);
          return svid === undefined ? err('AUTH_NO_SVID' as const) : ok(svid);
        },
      },
      bundles,
      revocations,
      policy: () => policy,
      tunnel: {
        whenReady: async () => ok(undefined),
        allow: async () => {},
        disallow: async () => {},
        endSession: async () => {},
      },
      fences: { close: () => {}, open: () => {}, list: () => [] },
      quiesce: async () => {},
      endpointOpened: () => {},
      audit,
      clock,
      timers: systemTimers,
      log,
      settings: { preAuthentication: { enabled: true, rate: 200 } },
    };
    this.#manager = createAuthManager(options);
    for (const workload of this.#fact.workloads) this.#open(workload);
  }

  /** An endpoint dies, and one of the same identity comes at another address. */
  churn(): void {
    const at = Math.floor(Math.random() * this.#endpoints.length);
    const [dying] = this.#endpoints.splice(at, 1);
    this.#manager.closeEndpoint(dying!.endpoint);
    this.#open(dying!.workload);
  }

  #open(workload: SvidFact): void {
    const address = this.#freeAddress();
    const endpoint = ++this.#lastEndpoint;
    this.#endpoints.push({ endpoint, workload, address });
    const [identity, id] = [securityIdentity(workload.identity), workload.spiffeId as SpiffeId];
    this.#manager.addEndpoint({ endpoint, identity, spiffeId: id, addresses: [address] });
  }

  #freeAddress(): IpAddress {
    for (;;) {
      this.#lastHost = this.#lastHost >= 250 ? 10 : this.#lastHost + 1;
      const address = parseAddress(`${this.#fact.net}.${this.#lastHost}`)!;
      if (this.#endpoints.every((endpoint) => endpoint.address !== address)) return address;
    }
  }

  get report() {
    const now = clock.bootNs();
    return {
      channels: this.#channels.list().length,
      known: this.#manager.endpoints().filter(({ grants }) => grants.some(({ untilNs }) => untilNs > now)).length,
      proven: this.#manager.proven,
    };
  }
}

const peers = facts.peers.map((fact) => new PeerNode(fact));
for (const peer of peers) await peer.start();
let isChurning = false;
let churned = 0;

process.on('message', (message: PeerRequest) => {
  if (message.churnEveryMs !== undefined && !isChurning) {
    isChurning = true;
    setInterval(() => {
      peers[Math.floor(Math.random() * peers.length)]!.churn();
      churned += 1;
    }, message.churnEveryMs);
  }
  const reports = peers.map((peer) => peer.report);
  const sum = (of: keyof PeerNode['report']) => reports.reduce((total, report) => total + report[of], 0);
  process.send!({
    channels: sum('channels'),
    known: sum('known'),
    proven: sum('proven'),
    churned,
  } satisfies PeerReport);
});
process.on('disconnect', () => process.exit(0));
process.send!({ channels: 0, known: 0, proven: 0, churned: 0 } satisfies PeerReport);

function bytes(base64: string): Buffer {
  return Buffer.from(base64, 'base64');
}

function infoOf(fact: NodeFact): NodeInfo {
  const name = fact.name as NodeName;
  return {
    name,
    spiffeId: nodeSpiffeId(trustDomain, name),
    id: nodeId(fact.id),
    incarnation: BigInt(fact.incarnation),
    peerAddresses: fact.peerAddresses,
    prefixes: fact.prefixes.map((prefix) => parsePrefix(prefix)!),
  };
}

function rowOf(workload: { identity: number; spiffeId: string }, node: SpiffeId): IdentityRow {
  return {
    identity: securityIdentity(workload.identity),
    spiffeId: workload.spiffeId as SpiffeId,
    labels: {},
    nodes: [node],
  };
}

function svidOf({ spiffeId, chain, key, notAfterMs }: Omit<SvidFact, 'identity'>): Svid {
  return {
    spiffeId: spiffeId as SpiffeId,
    chain: chain.map(bytes),
    privateKey: privateKeyFromDer(bytes(key)),
    notAfterMs,
  };
}

function addressTable(): AddressTable {
  const entries = new Map<IpAddress, AddressEntry>();
  return {
    put: (entry) => void entries.set(entry.address, entry),
    putAll: (all) => {
      for (const entry of all) entries.set(entry.address, entry);
    },
    delete: (address) => entries.delete(address),
    get: (address) => entries.get(address),
    list: () => [...entries.values()],
  };
}

function authTable(): AuthTable {
  const entries = new Map<string, AuthEntry>();
  const text = (key: AuthKey) => `${key.local}/${key.remote}/${key.remoteNode}/${key.authType}`;
  const put = (entry: AuthEntry) => void entries.set(text(entry), entry);
  return {
    epoch: 1,
    put,
    putAll: (all) => all.forEach(put),
    raiseEpoch: () => 1,
    delete: (keys) => keys.filter((key) => entries.delete(text(key))).length,
    refuse: (keys) => {
      for (const key of keys) entries.delete(text(key));
    },
    forgetRefusals: () => {},
    list: () => [...entries.values()],
    putFlow: () => {},
    refuseFlow: () => {},
    deleteFlows: () => 0,
    listFlows: () => [],
  };
}
