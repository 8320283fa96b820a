/** `countersign svid fetch` and `svid watch`: a workload's identity as files, for programs that speak no Workload API. */
import { X509Certificate } from 'node:crypto';
import { constants } from 'node:os';
import { join } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { CountersignError } from '../../base/errors.ts';
import { systemTimers } from '../../base/timers.ts';
import type { SpiffeId } from '../../model/ids.ts';
import { parseSpiffeId } from '../../model/spiffe-id.ts';
import type { Identity, Wanted } from '../../workload/outputs/follow.ts';
import { withOutput } from '../context.ts';
import { type Format, printJson } from '../output.ts';

interface SvidOptions extends Wanted {
  readonly socket: string;
  readonly write?: string;
  readonly audience: readonly string[];
  readonly pkcs12?: boolean;
  readonly passwordFile?: string;
  readonly output: Format;
}

interface WatchOptions extends SvidOptions {
  readonly write: string;
  readonly pidFile?: string;
  readonly signal: NodeJS.Signals;
  readonly commandTimeout: number;
}

export function addSvidOutputs(svid: Command): void {
  shared(svid.command('fetch').description('as a workload: ask the Workload API who this process is, once'))
    .option('--write <dir>', 'where to write the files; without it only the SPIFFE ID, or the JWT-SVID, is shown')
    .action(fetch);
  shared(
    svid
      .command('watch')
      .description(
        'as a workload: write the files and keep them fresh; tell a process or run a command on each renewal',
      ),
  )
    .argument('[command...]', 'runs after each renewal, after --; without a shell')
    .requiredOption('--write <dir>', 'where to write the files')
    .option('--pid-file <file>', 'tell the process whose id is in this file of each renewal')
    .option('--signal <name>', 'with this signal', signalOf, 'SIGHUP')
    .option('--command-timeout <seconds>', 'how long the command may run before it is ended', secondsOf, 60)
    .action(watch);
}

function shared(command: Command): Command {
  return withOutput(command)
    .option(
      '--socket <path>',
      'the Workload API socket',
      process.env.SPIFFE_ENDPOINT_SOCKET?.replace(/^unix:(\/\/(?=\/))?/, '') ?? '/run/countersign/workload.sock',
    )
    .option('--spiffe-id <id>', 'which SVID, of several', idOf)
    .option('--hint <hint>', 'which SVID, by the hint of its entry')
    .option('--audience <audience...>', 'a JWT-SVID for these audiences, too', [])
    .option('--pkcs12', 'write keystore.p12 and truststore.p12, too')
    .option(
      '--password-file <file>',
      'holds the password of both; left out: one is made and kept in keystore.password',
    );
}

async function fetch(options: SvidOptions): Promise<void> {
  const { socket, audience } = options;
  if (options.write === undefined && (options.pkcs12 || options.passwordFile !== undefined)) {
    throw new CountersignError('bad-input', '--pkcs12 and --password-file need --write: keystores are files');
  }
  const { fetchJwtSvid, fetchX509Svids } = await import('../../workload/client.ts');
  const { selectSvid } = await import('../../workload/outputs/follow.ts');
  const write = options.write === undefined ? undefined : await writer(options, options.write);
  const svid = selectSvid(await fetchX509Svids(socket), options);
  const jwt = audience.length === 0 ? undefined : await fetchJwtSvid(socket, audience, { spiffeId: svid.spiffeId });
  await write?.({ svid, jwt });
  if (options.output === 'json') {
    const token = jwt === undefined || write !== undefined ? {} : { jwtSvid: jwt.token };
    printJson({ spiffeId: svid.spiffeId, ...token });
  } else console.log(jwt === undefined || write !== undefined ? svid.spiffeId : jwt.token);
}

async function watch(command: readonly string[], options: WatchOptions): Promise<void> {
  const { followIdentity } = await import('../../workload/outputs/follow.ts');
  const { renewalRunner } = await import('../../workload/outputs/on-renewal.ts');
  const write = await writer(options, options.write);
  const warn = (problem: string) => process.stderr.write(`countersign: ${problem}\n`);
  const runner = renewalRunner(
    {
      ...(command.length === 0 ? {} : { command }),
      ...(options.pidFile === undefined ? {} : { pidFile: options.pidFile }),
      commandTimeoutMs: options.commandTimeout * 1000,
      signal: options.signal,
    },
    { COUNTERSIGN_SVID_DIR: options.write },
    warn,
  );
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let last = '';
  let writing = Promise.resolve();
  const follow = followIdentity({
    socketPath: options.socket,
    wanted: options,
    audience: options.audience,
    timers: systemTimers,
    clock: { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() },
    onIdentity(identity) {
      last = '';
      writing = writing
        .then(() => write(identity))
        .then(() => {
          say(options.output, options.write, identity);
          runner.renewed();
        })
        .catch(reject);
    },
    onProblem({ message }) {
      // the same for as long as it lasts: said once
      if (message !== last) warn(message);
      last = message;
    },
  });
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => resolve());
  // timers and the stream's end hold nothing open by themselves
  const alive = setInterval(() => {}, 60_000);
  try {
    await promise;
  } finally {
    clearInterval(alive);
    follow.close();
    runner.close();
  }
}

/** Ready before anything is asked for, so that a directory or password that will not do is said at once. */
async function writer(options: SvidOptions, directory: string): Promise<(identity: Identity) => Promise<void>> {
  const { checkOutputDirectory, replaceFiles } = await import('../../workload/outputs/directory.ts');
  const { jwtFile, keystoreFiles, pemFiles } = await import('../../workload/outputs/files.ts');
  const { keptPassword, readPassword } = await import('../../workload/outputs/password.ts');
  const { passwordFile, pkcs12 } = options;
  if (passwordFile !== undefined && pkcs12 !== true) {
    throw new CountersignError('bad-input', '--password-file is of the keystores: it needs --pkcs12');
  }
  checkOutputDirectory(directory);
  const password = () =>
    passwordFile === undefined ? keptPassword(join(directory, 'keystore.password')) : readPassword(passwordFile);
  if (pkcs12) password();
  return async ({ svid, jwt }) => {
    replaceFiles(directory, [
      ...pemFiles(svid),
      ...(pkcs12 ? await keystoreFiles(svid, password()) : []),
      ...(jwt === undefined ? [] : [jwtFile(jwt)]),
    ]);
  };
}

function say(format: Format, directory: string, { svid, jwt }: Identity): void {
  const notAfter = new X509Certificate(svid.chain[0]!).validToDate.toISOString();
  const jwtNotAfter = jwt === undefined ? undefined : new Date(jwt.expiresAtMs).toISOString();
  const { spiffeId } = svid;
  if (format === 'json') printJson({ spiffeId, directory, notAfter, ...(jwtNotAfter ? { jwtNotAfter } : {}) });
  else console.log(`${directory}: ${spiffeId} until ${notAfter}${jwtNotAfter ? `, JWT until ${jwtNotAfter}` : ''}`);
}

function signalOf(text: string): NodeJS.Signals {
  const name = text.startsWith('SIG') ? text : `SIG${text}`;
  if (!(name in constants.signals)) throw new InvalidArgumentError('give the name of a signal, such as SIGHUP');
  return name as NodeJS.Signals;
}

function secondsOf(text: string): number {
  const seconds = Number(text);
  if (!Number.isInteger(seconds) || seconds < 1 || seconds > 86_400) {
    throw new InvalidArgumentError('give whole seconds from 1 to 86400');
  }
  return seconds;
}

function idOf(text: string): SpiffeId {
  const id = parseSpiffeId(text);
  if (!id.ok) throw new InvalidArgumentError(id.error);
  return id.value.id;
}
