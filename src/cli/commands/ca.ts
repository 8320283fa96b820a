/** The authority's signing keys, asked of and changed at the identity server. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type {
  AuthorityRequest,
  CaAdminClient,
  CrlReply,
  JsonReply,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { encodePem } from '../../pki/pem.ts';
import { caClient, call, type Done } from '../admin-client.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { lines, printJson, table } from '../output.ts';

interface Row {
  readonly kind: string;
  readonly id: string;
  readonly state: string;
  readonly tainted: boolean;
  readonly keyType: string;
  readonly upstream: boolean;
  readonly notBefore: string;
  readonly notAfter: string;
}

interface WaitOptions extends CommonOptions {
  readonly wait: number;
}

const KINDS = 'x509 or jwt';

async function ask<T>(
  options: CommonOptions,
  method: (client: CaAdminClient, done: Done<JsonReply>) => unknown,
): Promise<T> {
  const client = caClient(options);
  return JSON.parse((await call<JsonReply>(client, (done) => method(client, done))).json) as T;
}

function secondsOf(text: string): number {
  if (!/^\d{1,2}$/.test(text) || Number(text) > 60) throw new InvalidArgumentError('give whole seconds from 0 to 60');
  return Number(text);
}

const waitOption = () =>
  new Option('--wait <seconds>', 'for connected agents to have it in force; 0: do not wait')
    .default(10)
    .argParser(secondsOf);

export function addCaCommands(program: Command): void {
  const ca = program
    .command('ca')
    .description("the certificate authority's signing keys: rotation, and revocation lists");
  const request = (kind: string, id: string, { wait }: WaitOptions, reason = ''): AuthorityRequest => ({
    kind,
    id,
    reason,
    waitMs: wait * 1000,
  });
  const print = (options: CommonOptions, reply: object) => {
    if (options.output === 'json') printJson(reply);
    else console.log(lines(reply));
  };

  onServer(ca.command('list').description('signing keys, and where each is in its life')).action(
    async (options: CommonOptions) => {
      const reply = await ask<{ authorities: Row[] }>(options, (client, done) => client.listAuthorities({}, done));
      if (options.output === 'json') return printJson(reply);
      const headings = ['kind', 'id', 'state', 'key', 'signed by', 'not after'];
      const rows = reply.authorities.map((row) => [
        row.kind,
        row.id,
        row.tainted ? `${row.state}, tainted` : row.state,
        row.keyType,
        row.upstream ? 'upstream' : 'itself',
        row.notAfter,
      ]);
      console.log(table(headings, rows, 'no authorities'));
    },
  );

  onServer(
    ca
      .command('prepare')
      .argument('<kind>', KINDS)
      .description('make the next signing key and publish it in the trust bundle'),
  )
    .addOption(waitOption())
    .action(async (kind: string, options: WaitOptions) => {
      print(
        options,
        await ask<object>(options, (client, done) => client.prepareAuthority(request(kind, '', options), done)),
      );
    });

  onServer(
    ca
      .command('activate')
      .argument('<kind>', KINDS)
      .argument('[id]', 'the prepared one if left out')
      .description('sign with the prepared key from now on'),
  )
    .addOption(waitOption())
    .action(async (kind: string, id: string | undefined, options: WaitOptions) => {
      print(
        options,
        await ask<object>(options, (client, done) => client.activateAuthority(request(kind, id ?? '', options), done)),
      );
    });

  onServer(
    ca
      .command('taint')
      .argument('<kind>', KINDS)
      .argument('<id>')
      .description('have everything renewed that an old key signed; it stays in the trust bundle'),
  )
    .addOption(waitOption())
    .action(async (kind: string, id: string, options: WaitOptions) => {
      print(
        options,
        await ask<object>(options, (client, done) => client.taintAuthority(request(kind, id, options), done)),
      );
    });

  onServer(
    ca
      .command('revoke')
      .argument('<kind>', KINDS)
      .argument('<id>')
      .description('take an old or prepared key out of the trust bundle, revoke what it signed, and delete it'),
  )
    .option('--reason <text>', 'for the audit log and the CRL', '')
    .addOption(waitOption())
    .action(async (kind: string, id: string, options: WaitOptions & { readonly reason: string }) => {
      print(
        options,
        await ask<object>(options, (client, done) =>
          client.revokeAuthority(request(kind, id, options, options.reason), done),
        ),
      );
    });

  onServer(ca.command('crl').description('print the certificate revocation lists, one for each signing key')).action(
    async (options: CommonOptions) => {
      const client = caClient(options);
      const { crls } = await call<CrlReply>(client, (done) => client.getCrls({}, done));
      const pems = crls.map((der) => encodePem('X509 CRL', der));
      if (options.output === 'json') printJson({ crls: pems });
      else process.stdout.write(pems.join(''));
    },
  );
}
