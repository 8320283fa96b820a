/** Trust bundles, asked of and given to the identity server: the own one, and those of federated trust domains. */
import { readFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import type { BundleAdminClient, JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { readTextFile } from '../../base/config-file.ts';
import { CountersignError } from '../../base/errors.ts';
import type { TrustDomain } from '../../model/ids.ts';
import { decodePem } from '../../pki/pem.ts';
import { encodeSpiffeBundle, MAX_BUNDLE_LENGTH } from '../../pki/spiffe-bundle.ts';
import { bundleClient, call, type Done } from '../admin-client.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { lines, printJson, table } from '../output.ts';

type BundleFormat = 'pem' | 'spiffe';
interface FormatOptions extends CommonOptions {
  readonly format: BundleFormat;
}

interface Row {
  readonly trustDomain: string;
  readonly own: boolean;
  readonly x509Authorities: number;
  readonly jwtAuthorities: number;
  readonly sequence?: string;
  readonly origin?: string;
  readonly endpoint?: {
    readonly url: string;
    readonly refreshedAt?: string;
    readonly lastFailure?: { reason: string };
  };
}

const formatOption = () =>
  new Option(
    '--format <format>',
    'pem: CA certificates; spiffe: a SPIFFE bundle document (JWK Set), which holds JWT keys too',
  ).choices(['pem', 'spiffe']);

async function ask<T>(
  options: CommonOptions,
  method: (client: BundleAdminClient, done: Done<JsonReply>) => unknown,
): Promise<T> {
  const client = bundleClient(options);
  return JSON.parse((await call<JsonReply>(client, (done) => method(client, done))).json) as T;
}

function print(options: CommonOptions, reply: object): void {
  if (options.output === 'json') printJson(reply);
  else console.log(lines(reply));
}

export function addBundleCommands(program: Command): void {
  const bundle = program
    .command('bundle')
    .description('trust bundles: the own one, and those of federated trust domains');

  onServer(bundle.command('show [trust-domain]').description('print a trust bundle; without a name the own one'))
    .addOption(formatOption().default('pem'))
    .action(async (trustDomain: string | undefined, options: FormatOptions) => {
      const reply = await ask<{ certificates: string[]; document: string }>(options, (client, done) =>
        client.showBundle({ trustDomain: trustDomain ?? '' }, done),
      );
      if (options.output === 'json') printJson(reply);
      else process.stdout.write(options.format === 'pem' ? reply.certificates.join('') : `${reply.document}\n`);
    });

  onServer(
    bundle.command('list').description('every trust domain with a bundle or an endpoint, and how its refresh stands'),
  ).action(async (options: CommonOptions) => {
    const reply = await ask<{ bundles: Row[] }>(options, (client, done) => client.listBundles({}, done));
    if (options.output === 'json') return printJson(reply);
    const headings = ['trustDomain', 'x509', 'jwt', 'sequence', 'from', 'endpoint', 'refreshed', 'failing'];
    const rows = reply.bundles.map(({ endpoint, ...row }) => [
      row.trustDomain,
      row.x509Authorities,
      row.jwtAuthorities,
      row.sequence ?? '',
      row.own ? 'own' : (row.origin ?? 'none yet'),
      endpoint?.url ?? '',
      endpoint?.refreshedAt ?? '',
      endpoint?.lastFailure?.reason ?? '',
    ]);
    console.log(table(headings, rows, 'no bundles'));
  });

  onServer(
    bundle
      .command('set <trust-domain>')
      .description('trust a federated trust domain by this bundle, from a file or standard input'),
  )
    .addOption(formatOption().default('spiffe'))
    .requiredOption('--file <path>', 'the bundle; - is standard input')
    .action(async (trustDomain: string, options: FormatOptions & { file: string }) => {
      const document = documentOf(options, trustDomain as TrustDomain);
      print(options, await ask<object>(options, (client, done) => client.setBundle({ trustDomain, document }, done)));
    });

  onServer(
    bundle
      .command('delete <trust-domain>')
      .description('trust the trust domain no longer; an endpoint that is configured is asked again'),
  ).action(async (trustDomain: string, options: CommonOptions) => {
    print(options, await ask<object>(options, (client, done) => client.deleteBundle({ trustDomain }, done)));
  });

  onServer(bundle.command('refresh <trust-domain>').description("ask the trust domain's bundle endpoint now")).action(
    async (trustDomain: string, options: CommonOptions) => {
      print(options, await ask<object>(options, (client, done) => client.refreshBundle({ trustDomain }, done)));
    },
  );
}

function documentOf({ file, format }: FormatOptions & { file: string }, trustDomain: TrustDomain): string {
  const text = file === '-' ? readFileSync(0, 'utf8') : readTextFile(file);
  if (text.length > MAX_BUNDLE_LENGTH)
    throw new CountersignError('bad-input', `${file}: a bundle has at most ${MAX_BUNDLE_LENGTH} characters`);
  if (format === 'spiffe') return text;
  return encodeSpiffeBundle({ trustDomain, authorities: decodePem(text, 'CERTIFICATE') });
}
