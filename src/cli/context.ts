/** Options that many commands share, and the one place where a command's outcome becomes an exit status. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { asError, CountersignError } from '../base/errors.ts';
import { EXIT, exitCodeOf } from '../base/exit-codes.ts';
import { AGENT_SOCKET, type RemoteServer, SERVER_SOCKET } from './admin-client.ts';
import type { Format } from './output.ts';

/** Where deploy/systemd/ has it. */
const AGENT_CONFIG = '/etc/countersign/agent.yaml';

export interface CommonOptions {
  readonly output: Format;
  readonly socket: string;
  /** There instead of the socket where --server was given. */
  readonly remote?: RemoteServer;
}

const outputOption = () =>
  new Option('-o, --output <format>', 'how to print').choices(['text', 'json']).default('text');

export function withOutput(command: Command): Command {
  return command.addOption(outputOption());
}

export function onAgent(command: Command): Command {
  return withOutput(command).option('--socket <path>', "the agent's admin socket", AGENT_SOCKET);
}

/** Asks the server of this machine over its socket, or with --server another one over TLS, as whoever the SVID says. */
export function onServer(command: Command): Command {
  return withOutput(command)
    .option('--socket <path>', "the server's admin socket", SERVER_SOCKET)
    .option(
      '--server <host:port>',
      "instead of the socket: the server's admin.listen, over TLS; several with commas, where servers share a datastore",
    )
    .option(
      '--svid <where>',
      'with --server, who asks: a directory with svid.pem, key.pem, bundle.pem, or unix:PATH of a Workload API',
    )
    .hook('preAction', async (asked) => {
      const { server, svid } = asked.opts<{ server?: string; svid?: string }>();
      if (server === undefined && svid === undefined) return;
      const { remoteServer } = await import('./remote-server.ts');
      asked.setOptionValue('remote', await remoteServer(server, svid));
    });
}

/** A command on this machine's node, by its settings: it needs root and no agent. */
export function onNode(command: Command): Command {
  return withOutput(command).option('--config <file>', "the node's AgentConfig file", AGENT_CONFIG);
}

/** Of a --port option. @throws InvalidArgumentError */
export function portOf(text: string): number {
  const port = Number(text);
  if (!/^\d{1,5}$/.test(text) || port > 65_535) throw new InvalidArgumentError('give a number from 0 to 65535');
  return port;
}

/** Who runs the command, as far as the machine knows. */
export function actor(): string {
  const by = process.env.SUDO_USER;
  return by === undefined ? `uid ${process.getuid?.()}` : `${by} (uid ${process.env.SUDO_UID ?? '?'}) by sudo`;
}

/** Prints the error as a sentence (as JSON on stderr it would help nobody) and sets the exit status of its code. */
export function fail(thrown: unknown): void {
  const error = asError(thrown);
  process.stderr.write(`countersign: ${error.message}\n`);
  process.exitCode = error instanceof CountersignError ? exitCodeOf(error.code) : EXIT.no;
  if (!(error instanceof CountersignError) && process.env.COUNTERSIGN_DEBUG !== undefined)
    process.stderr.write(`${error.stack}\n`);
}
