/** `countersign monitor`: what happens on this node, as it happens. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { agentClient, fromGrpc } from '../admin-client.ts';
import { type CommonOptions, onAgent } from '../context.ts';
import { eventLine } from '../event-line.ts';

interface MonitorOptions extends CommonOptions {
  readonly kind: string[];
  readonly from: string[];
  readonly to: string[];
  readonly reason: string[];
  readonly port: number;
  readonly protocol: string;
  readonly verdict: string[];
  readonly verdicts?: boolean;
  readonly sample?: number;
}

const numberUpTo = (most: number) => (text: string) => {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > most)
    throw new InvalidArgumentError(`give a number from 1 to ${most}`);
  return value;
};

export function addMonitor(program: Command): void {
  onAgent(program.command('monitor').description('events as they happen, until interrupted'))
    .option('--kind <kind...>', 'such as packet.dropped or auth.failed', [])
    .option('--from <who...>', "a workload's name, SPIFFE ID or address: who sent", [])
    .option('--to <who...>', 'likewise: who was to receive', [])
    .option('--reason <code...>', 'such as POLICY_DENIED', [])
    .option('--port <port>', 'destination port', numberUpTo(65_535), 0)
    .option('--protocol <name>', 'tcp, udp, sctp, icmp, icmpv6 or a number', '')
    .addOption(
      new Option('--verdict <verdict...>', 'events of packets only').choices(['allow', 'drop', 'observed']).default([]),
    )
    .option(
      '--verdicts',
      'allowed packets too, of those the kernel judges in full: first packets, not those of known flows',
    )
    .option('--sample <n>', 'one of so many of them; with --verdicts', numberUpTo(1 << 20))
    .action(async (options: MonitorOptions) => {
      const { kind, from, to, reason, port, protocol, verdict } = options;
      const sampled = options.verdicts === true || options.sample !== undefined || verdict.includes('allow');
      const client = agentClient(options.socket);
      const stream = client.monitor({
        kinds: kind,
        from,
        to,
        reasons: reason,
        port,
        protocol,
        verdicts: verdict,
        sample: sampled ? (options.sample ?? 1) : 0,
      });
      await new Promise<void>((resolve, reject) => {
        stream.on('data', ({ json }: JsonReply) => {
          const line = options.output === 'json' ? json : eventLine(json);
          // Whoever reads this slowly makes the agent wait no longer than its queue is.
          if (!process.stdout.write(`${line}\n`)) {
            stream.pause();
            process.stdout.once('drain', () => stream.resume());
          }
        });
        stream.on('end', resolve);
        stream.on('error', (error) => reject(fromGrpc(error as Parameters<typeof fromGrpc>[0])));
      }).finally(() => client.close());
    });
}
