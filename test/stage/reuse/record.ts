// Loaded into an agent before its own modules (NODE_OPTIONS=--import): what leases and fences do there is written down, in the words of the
// model, a line of JSON for each event in $COUNTERSIGN_TRACES/NODE.jsonl. Times are CLOCK_BOOTTIME in ns: one clock for all agents here.
import { openSync, writeSync } from 'node:fs';
import { registerHooks } from 'node:module';
import { join } from 'node:path';
import type { createAuthManager } from '../../../src/auth/manager.ts';
import type { VouchEvent } from '../../../src/auth/vouch-trace.ts';
import type { PeerChannel } from '../../../src/channel/peer-channel.ts';

type Create = typeof createAuthManager;

const WHERE = 'manager = createAuthManager({';
const INSTEAD = "manager = globalThis[Symbol.for('countersign.recorded')](createAuthManager)({";
/** Said right after its frame was handed to the channel: by then the other end may have acted upon it. All else is said before. */
const AFTER_SENDING = new Set<VouchEvent['ev']>(['reset-ack']);

function recorded(create: Create): Create {
  return (options) => {
    const { self, clock, nodes, firstLife } = options;
    const file = openSync(join(process.env.COUNTERSIGN_TRACES!, `${self.name}.jsonl`), 'a', 0o600);
    const channels = new Map<string, string>();
    let lastNs = 0n;
    let sentNs: bigint | undefined;
    const write = (ev: string, atNs: bigint, fields: Readonly<Record<string, unknown>>): void => {
      if (atNs > lastNs) lastNs = atNs;
      const line = { ev, node: self.name, ns: lastNs, ...fields };
      writeSync(file, `${JSON.stringify(line, (_, value) => (typeof value === 'bigint' ? String(value) : value))}\n`);
    };
    const trace = (event: VouchEvent): void => {
      const { ev, ...fields } = event;
      const atNs = AFTER_SENDING.has(ev) ? sentNs : undefined;
      sentNs = undefined;
      write(ev, atNs ?? clock.bootNs(), {
        ...fields,
        ...('peer' in event ? { peer: nodes.byId(event.peer)?.name } : {}),
        ...('channel' in event ? { channel: channels.get(event.channel) } : {}),
      });
    };
    const meet = (channel: PeerChannel): void => {
      // The same on both ends, and of this channel alone.
      const id = channel.exportKey('EXPORTER-countersign-test-trace', Buffer.alloc(0), 16).toString('hex');
      channels.set(channel.id, id);
      const { send } = channel;
      channel.send = (...frame) => {
        sentNs = clock.bootNs();
        send.apply(channel, frame);
      };
    };
    const of = ({ id, peer }: PeerChannel) => ({
      peer: peer.name,
      channel: channels.get(id),
      incarnation: peer.incarnation,
    });
    if (firstLife) write('node-start', clock.bootNs(), { incarnation: self.incarnation });
    write('agent-start', clock.bootNs(), { incarnation: self.incarnation });
    const manager = create({ ...options, trace });
    const { opened, closed } = manager;
    manager.opened = (channel) => {
      meet(channel);
      write('channel-open', clock.bootNs(), of(channel));
      opened.call(manager, channel);
    };
    manager.closed = (channel, reason) => {
      write('channel-close', clock.bootNs(), of(channel));
      closed.call(manager, channel, reason);
    };
    return manager;
  };
}

Object.assign(globalThis, { [Symbol.for('countersign.recorded')]: recorded });
registerHooks({
  load(url, context, next) {
    const loaded = next(url, context);
    if (!url.endsWith('src/agent/agent.ts')) return loaded;
    const source = String(loaded.source);
    if (source.split(WHERE).length !== 2) throw new Error(`src/agent/agent.ts does not have once: ${WHERE}`);
    return { ...loaded, source: source.replace(WHERE, INSTEAD) };
  },
});
