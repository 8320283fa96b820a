/**
 * Agents for the benchmark `registry`, many in one process: each has its own node SVID, its own TLS connection and Sync stream, acks
 * what it is sent, and asks for an SVID when an entry of its node comes. What a real agent does with the identity table costs the
 * agent's machine and is left out: messages are walked through, not decoded.
 */
import { readFileSync } from 'node:fs';
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { type ClientDuplexStream, makeClientConstructor, type ServiceError } from '@grpc/grpc-js';
import {
  Entry,
  IdentityServerService,
  type IssueRequest,
  type IssueResponse,
  SyncRequest,
} from '../../../proto/gen/countersign/server/v1/server.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { SpiffeId, TrustDomain } from '../../../src/model/ids.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey, privateKeyFromDer } from '../../../src/pki/keys.ts';

export interface AgentFacts {
  readonly address: string;
  readonly trustDomain: TrustDomain;
  readonly authorities: readonly string[];
  readonly nodes: readonly { readonly spiffeId: SpiffeId; readonly chain: readonly string[]; readonly key: string }[];
}

/** To the benchmark. Times are Unix ms with fractions: both are on one machine. */
export type AgentWord =
  | { readonly kind: 'synced'; readonly agents: number; readonly bytes: number }
  | { readonly kind: 'svid'; readonly entry: string; readonly seenMs: number; readonly svidMs: number }
  | { readonly kind: 'failed'; readonly why: string };

/** Handshakes and snapshots under way at once. */
const AT_ONCE = 16;
const CALL_MS = 30_000;

interface Seen {
  readonly version: bigint;
  readonly session: bigint;
  readonly more: boolean;
  readonly entries: readonly string[];
  readonly bytes: number;
}

/** The numbers and entries of a SyncResponse; everything else is passed over. */
function look(message: Buffer): Seen {
  const reader = new BinaryReader(message);
  let version = 0n;
  let session = 0n;
  let more = false;
  const entries: string[] = [];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === 1) version = BigInt(reader.uint64());
    else if (field === 3) entries.push(Entry.decode(reader.bytes()).id);
    else if (field === 12) session = BigInt(reader.uint64());
    else if (field === 16) more = reader.bool();
    else reader.skip(type);
  }
  return { version, session, more, entries, bytes: message.length };
}

const LookingClient = makeClientConstructor(
  { sync: { ...IdentityServerService.sync, responseDeserialize: look } },
  'IdentityServer',
);

const facts = JSON.parse(readFileSync(process.argv[2]!, 'utf8')) as AgentFacts;
const bundle = {
  trustDomain: facts.trustDomain,
  authorities: facts.authorities.map((text) => Buffer.from(text, 'base64')),
};
const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
const csr = createCsr(generateKey());
const nowMs = () => performance.timeOrigin + performance.now();
const say = (word: AgentWord) => process.send!(word);

/** Resolves with the bytes of the snapshot. */
function run(node: AgentFacts['nodes'][number]): Promise<number> {
  const svid = {
    spiffeId: node.spiffeId,
    chain: node.chain.map((text) => Buffer.from(text, 'base64')),
    privateKey: privateKeyFromDer(Buffer.from(node.key, 'base64')),
    notAfterMs: Date.now() + 3_600_000,
  };
  const connection = new Connection({ addresses: [facts.address], bundle, svid, clock });
  const open = LookingClient.prototype as unknown as { sync(): ClientDuplexStream<SyncRequest, Seen> };
  const call = open.sync.call(connection.rpc);
  const issue = async (entry: string) => {
    const seenMs = nowMs();
    const request: IssueRequest = { csrs: [{ entryId: entry, csr }] };
    const { results } = await connection.unary<IssueRequest, IssueResponse>('issue', request, CALL_MS);
    const outcome = results[0]?.outcome;
    if (outcome?.$case === 'svid') say({ kind: 'svid', entry, seenMs, svidMs: nowMs() });
    else say({ kind: 'failed', why: `${entry}: ${outcome?.value ?? 'no answer'}` });
  };
  return new Promise((resolve, reject) => {
    let synced = false;
    let bytes = 0;
    let version = 0n;
    call.on('data', (seen: Seen) => {
      bytes += seen.bytes;
      if (seen.version > 0n) version = seen.version;
      if (seen.session > 0n)
        call.write(SyncRequest.create({ kind: { $case: 'session', value: { session: seen.session } } }));
      if (synced)
        for (const entry of seen.entries)
          issue(entry).catch((error: Error) => say({ kind: 'failed', why: error.message }));
      if (seen.more) return;
      call.write(SyncRequest.create({ kind: { $case: 'ack', value: { version } } }));
      if (!synced) resolve(bytes);
      synced = true;
    });
    call.on('error', (error: ServiceError) => {
      if (synced) say({ kind: 'failed', why: `${node.spiffeId}: ${error.message}` });
      reject(error);
    });
    call.write(SyncRequest.create({ kind: { $case: 'start', value: { peerAddresses: [], session: 0n } } }));
  });
}

let next = 0;
let total = 0;
const worker = async () => {
  for (let node = facts.nodes[next++]; node !== undefined; node = facts.nodes[next++]) {
    const bytes = await run(node);
    total += bytes;
  }
};
process.on('disconnect', () => process.exit(0));
Promise.all(Array.from({ length: AT_ONCE }, worker)).then(
  () => say({ kind: 'synced', agents: facts.nodes.length, bytes: total }),
  (error: Error) => say({ kind: 'failed', why: error.message }),
);
