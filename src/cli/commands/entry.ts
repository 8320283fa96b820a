/** Registration entries: which workload gets which SPIFFE ID. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { ListEntriesRequest } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../base/errors.ts';
import { type CommonOptions, onServer } from '../context.ts';
import { ask, print, printRows, type Row } from '../server-replies.ts';

/** As the command line has them; what is left out is left as it is, or as the server's default has it. */
interface EntryOptions extends CommonOptions {
  readonly id?: string;
  readonly spiffeId?: string;
  readonly node?: string;
  readonly selector?: string[];
  readonly label?: string[];
  readonly port?: string[];
  readonly ttl?: number;
  readonly jwtTtl?: number;
  readonly dnsName?: string[];
  readonly federatesWith?: string[];
  readonly hint?: string;
  readonly admin?: true;
  readonly downstream?: true;
}

interface UpdateOptions extends EntryOptions {
  readonly unset: string[];
}

interface ListOptions extends CommonOptions {
  readonly node?: string;
  readonly spiffeId?: string;
  readonly selector: string[];
  readonly limit?: number;
}

const COLUMNS = ['id', 'spiffeId', 'parentId', 'selectors', 'labels', 'securityIdentity'];
const UNSETTABLE = [
  'labels',
  'ports',
  'ttlSeconds',
  'jwtTtlSeconds',
  'dnsNames',
  'federatesWith',
  'hint',
  'admin',
  'downstream',
];

function wholeNumber(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('give a whole number of 1 or more');
  return Number(text);
}

function namedPort(text: string) {
  const match = /^([^=]+)=(\d+)(?:\/(TCP|UDP|SCTP))?$/i.exec(text);
  if (match === null) throw new CountersignError('bad-input', `--port ${text}: write it as name=port or name=port/UDP`);
  return { name: match[1], port: Number(match[2]), protocol: (match[3] ?? 'TCP').toUpperCase() };
}

function labelsOf(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw new CountersignError('bad-input', `--label ${pair}: write it as key=value`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

/** The fields that were given. */
function fieldsOf(options: EntryOptions): Row {
  const { spiffeId, node, selector, label, port, ttl, jwtTtl, dnsName, federatesWith, hint, admin, downstream } =
    options;
  const fields: Row = {
    spiffeId,
    node,
    selectors: selector,
    labels: label === undefined ? undefined : labelsOf(label),
    ports: port?.map(namedPort),
    ttlSeconds: ttl,
    jwtTtlSeconds: jwtTtl,
    dnsNames: dnsName,
    federatesWith,
    hint,
    admin,
    downstream,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** An entry as `show` prints it, back to what it was made of. */
function specOf(entry: Row): Row {
  const { id, spiffeId, selectors, labels, hint, dnsNames, federatesWith, admin, downstream } = entry;
  const protocols: Record<number, string> = { 6: 'TCP', 17: 'UDP', 132: 'SCTP' };
  const ports = (entry.ports as { name: string; protocol: number; port: number }[]).map(({ name, protocol, port }) => ({
    name,
    protocol: protocols[protocol],
    port,
  }));
  const ttls = Object.entries({ ttlSeconds: entry.ttlSeconds, jwtTtlSeconds: entry.jwtTtlSeconds });
  return {
    ...{ id, spiffeId, selectors, labels, ports, hint, dnsNames, federatesWith, admin, downstream },
    node: String(entry.parentId).split('/node/')[1],
    ...Object.fromEntries(ttls.filter(([, seconds]) => seconds !== 0)),
  };
}

function withFields(command: Command): Command {
  return command
    .option('--label <key=value...>', 'labels that policies select')
    .option('--port <name=port[/protocol]...>', 'ports that policies may name, such as http=8080 or dns=53/UDP')
    .option('--ttl <seconds>', 'life of its X.509-SVIDs', wholeNumber)
    .option('--jwt-ttl <seconds>', 'life of its JWT-SVIDs', wholeNumber)
    .option('--dns-name <name...>', 'DNS names in its X.509-SVIDs')
    .option('--federates-with <trust-domain...>', 'trust domains whose bundles its workload gets too')
    .option('--hint <text>', 'for a workload that has several SVIDs')
    .option('--admin', 'its X.509-SVIDs have the role admin at admin.listen')
    .option('--downstream', 'its X.509-SVIDs may have the authority of a server below signed');
}

export function addEntryCommands(program: Command): void {
  const entry = program.command('entry').description('registration entries: which workload gets which SPIFFE ID');

  onServer(entry.command('list').description('registration entries, all or those that match'))
    .option('--node <name>', 'of this node')
    .option('--spiffe-id <id>', 'with this SPIFFE ID')
    .option('--selector <type:value...>', 'with each of these selectors', [])
    .addOption(new Option('--limit <n>', 'at most so many').argParser(wholeNumber))
    .action(async (options: ListOptions) => {
      const entries = await listEntries(options);
      printRows(options, { entries }, entries, COLUMNS, 'no entries');
    });

  onServer(entry.command('show <id>').description('one entry')).action(async (id: string, options: CommonOptions) => {
    print(options, await ask<Row>(options, (client, done) => client.getEntry({ id }, done)));
  });

  withFields(
    onServer(entry.command('create').description('add an entry'))
      .requiredOption('--spiffe-id <id>', 'the SPIFFE ID the workload gets')
      .requiredOption('--node <name>', 'the node it runs on')
      .requiredOption('--selector <type:value...>', 'what the workload must be, such as unix:uid:1001; all must match')
      .option('--id <id>', "the entry's name; without it one is made up"),
  ).action(async (options: EntryOptions) => {
    const json = JSON.stringify({ ...fieldsOf(options), id: options.id });
    print(options, await ask<Row>(options, (client, done) => client.putEntry({ json, mode: 'create' }, done)));
  });

  withFields(
    onServer(entry.command('update <id>').description('change an entry; what is not named stays'))
      .option('--spiffe-id <id>', 'the SPIFFE ID the workload gets')
      .option('--node <name>', 'the node it runs on')
      .option('--selector <type:value...>', 'what the workload must be; all must match'),
  )
    .addOption(new Option('--unset <field...>', 'take back to its default').choices(UNSETTABLE).default([], 'nothing'))
    .action(async (id: string, options: UpdateOptions) => {
      const known = await ask<Row>(options, (client, done) => client.getEntry({ id }, done));
      const spec = { ...specOf(known), ...fieldsOf(options) };
      for (const field of options.unset) delete spec[field];
      const json = JSON.stringify(spec);
      print(options, await ask<Row>(options, (client, done) => client.putEntry({ json, mode: 'update' }, done)));
    });

  onServer(entry.command('delete <id>').description('remove an entry; its SVIDs are no longer renewed')).action(
    async (id: string, options: CommonOptions) => {
      print(options, await ask<Row>(options, (client, done) => client.deleteEntry({ id }, done)));
    },
  );
}

/** Page by page. */
async function listEntries(options: ListOptions): Promise<Row[]> {
  const { node = '', spiffeId = '', selector, limit = Number.POSITIVE_INFINITY } = options;
  const entries: Row[] = [];
  let pageToken = '';
  do {
    const pageSize = Math.min(1000, limit - entries.length);
    const request = ListEntriesRequest.create({ node, spiffeId, selectors: selector, pageSize, pageToken });
    const reply = await ask<{ entries: Row[]; nextPageToken?: string }>(options, (client, done) =>
      client.listEntries(request, done),
    );
    entries.push(...reply.entries);
    pageToken = reply.nextPageToken ?? '';
  } while (pageToken !== '' && entries.length < limit);
  return entries;
}
