/** `countersign migrate spire`: registration entries of a SPIRE server become ours. */
import { writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { stringify } from 'yaml';
import type { JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { readTextFile } from '../../base/config-file.ts';
import { asError, CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import { parseTrustDomain } from '../../model/spiffe-id.ts';
import { parseSpiffeBundle } from '../../pki/spiffe-bundle.ts';
import { call, serverClient } from '../admin-client.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { lines, printJson } from '../output.ts';

interface MigrateOptions extends CommonOptions {
  readonly trustDomain: string;
  readonly entries: string;
  readonly bundle?: string;
  readonly parent: readonly string[];
  readonly write?: string;
  readonly create?: boolean;
}

export function addMigrateCommands(program: Command): void {
  const migrate = program.command('migrate').description('from other servers');
  onServer(
    migrate
      .command('spire')
      .description('take over registration entries of a SPIRE server; what has no counterpart is said')
      .requiredOption('--trust-domain <name>', 'of both servers')
      .requiredOption('--entries <file>', 'what this prints: spire-server entry show -output json')
      .option('--bundle <file>', 'what this prints: spire-server bundle show -format spiffe')
      .option(
        '--parent <spiffe-id=node...>',
        'which node, or nodes with commas between, stand for a parent of SPIRE',
        [],
      )
      .option('--write <file>', 'write an entries file for the server’s entriesFile')
      .option('--create', 'register the entries at the running server'),
  ).action(async (options: MigrateOptions) => {
    const trustDomain = parseTrustDomain(options.trustDomain);
    if (!trustDomain.ok) throw new CountersignError('bad-input', `--trust-domain: ${trustDomain.error}; correct it`);
    const { migrateSpireEntries } = await import('../../../identity/migrate/spire.ts');
    const migrated = migrateSpireEntries(readTextFile(options.entries), trustDomain.value, parentsOf(options.parent));
    const { entries, leftOut, changed } = migrated;
    const authorities = options.bundle === undefined ? undefined : authoritiesIn(options.bundle, trustDomain.value);
    if (options.write !== undefined) {
      const document = {
        apiVersion: 'countersign.dev/v1alpha1',
        kind: 'RegistrationEntries',
        entries: entries.map(written),
      };
      writeFileSync(options.write, stringify(document), { flag: 'wx', mode: 0o644 });
    }
    const refused: { id: string; why: string }[] = [];
    if (options.create === true) {
      for (const entry of entries) {
        const client = serverClient(options);
        const json = JSON.stringify(written(entry));
        await call<JsonReply>(client, (done) => client.putEntry({ json, mode: 'create' }, done)).catch((thrown) => {
          if (thrown instanceof CountersignError && thrown.code === 'unavailable') throw thrown;
          refused.push({ id: entry.id, why: asError(thrown).message });
        });
      }
    }
    const done = {
      entries: entries.length,
      ...(options.write === undefined ? {} : { written: options.write }),
      ...(options.create === true ? { created: entries.length - refused.length, refused } : {}),
      changed,
      leftOut,
      ...(authorities === undefined ? {} : { authorities }),
    };
    if (options.output === 'json') printJson(done);
    else console.log(lines(done));
    if (authorities !== undefined && options.output !== 'json') console.log(ABOUT_BUNDLE);
    if (leftOut.length + refused.length > 0) process.exitCode = EXIT.partly;
  });
}

const ABOUT_BUNDLE =
  'The authorities above sign nothing here. To have the SVIDs of both servers trusted while you move, give both the same upstream (ca.upstream).';

/** As an administrator writes it: the protocol of a port is a name there, and what is empty is left out. */
function written({ ports: _, ...entry }: { readonly ports: unknown; readonly id: string }): object {
  return Object.fromEntries(
    Object.entries(entry as Record<string, unknown>).filter(([, value]) => {
      if (value === '' || value === false || value === undefined) return false;
      return typeof value !== 'object' || Object.keys(value as object).length > 0;
    }),
  );
}

function parentsOf(texts: readonly string[]): Map<string, readonly string[]> {
  const parents = new Map<string, readonly string[]>();
  for (const text of texts) {
    const at = text.lastIndexOf('=');
    const nodes = text.slice(at + 1).split(',');
    if (at < 1 || !text.startsWith('spiffe://') || nodes.includes('')) {
      throw new CountersignError('bad-input', `--parent ${text}: write it as spiffe://…=NODE or spiffe://…=NODE,NODE`);
    }
    parents.set(text.slice(0, at), nodes);
  }
  return parents;
}

function authoritiesIn(path: string, trustDomain: Parameters<typeof parseSpiffeBundle>[1]): object {
  const bundle = parseSpiffeBundle(readTextFile(path), trustDomain);
  if (!bundle.ok) {
    const fix = 'print it with: spire-server bundle show -format spiffe';
    throw new CountersignError('bad-input', `${path}: ${bundle.error}; ${fix}`);
  }
  const { authorities, jwtAuthorities } = bundle.value;
  return { x509: authorities.length, jwt: (jwtAuthorities ?? []).map(({ keyId }) => keyId) };
}
