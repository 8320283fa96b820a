/** The audit log, offline: verify it with the trust bundle only, read it. */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { readEvents } from '../../audit/read.ts';
import { verifyAuditLog } from '../../audit/verify.ts';
import { CountersignError } from '../../base/errors.ts';
import { EXIT } from '../../base/exit-codes.ts';
import type { AuditKind } from '../../model/audit-event.ts';
import type { TrustBundle } from '../../model/identity.ts';
import { trustDomainOf } from '../../model/spiffe-id.ts';
import { parseCertificate } from '../../pki/certificate.ts';
import { decodePem } from '../../pki/pem.ts';
import { withOutput } from '../context.ts';
import type { Format } from '../output.ts';
import { lines, printJson } from '../output.ts';

function readBundle(path: string): TrustBundle {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `--bundle ${path}: cannot be read (${(cause as NodeJS.ErrnoException).code}); name a PEM file`,
      { cause },
    );
  }
  const authorities = decodePem(text, 'CERTIFICATE');
  const first = authorities[0] === undefined ? undefined : parseCertificate(authorities[0]);
  if (first === undefined || !first.ok || first.value.spiffeId === undefined) {
    throw new CountersignError(
      'bad-input',
      `--bundle ${path}: no CA certificate with a SPIFFE ID in it; give the trust bundle (countersign bundle show)`,
    );
  }
  return { trustDomain: trustDomainOf(first.value.spiffeId), authorities };
}

export function addAuditCommands(program: Command): void {
  const audit = program.command('audit').description('the audit log');
  withOutput(
    audit.command('verify <dir>').description('find any change, removal or reordering; exit status 1 if there is one'),
  )
    .requiredOption('--bundle <file>', 'the trust bundle (PEM): ties the log to its node')
    .action(async (dir: string, options: { bundle: string; output: Format }) => {
      const verdict = await verifyAuditLog(dir, { bundle: readBundle(options.bundle), nowMs: Date.now() });
      const report = verdict.ok ? { ok: true, ...verdict.value } : { ok: false, ...verdict.error };
      if (options.output === 'json') printJson(report);
      else
        console.log(
          verdict.ok ? `the log is whole\n${lines(verdict.value)}` : `THE LOG IS NOT WHOLE: ${verdict.error.problem}`,
        );
      if (!verdict.ok) process.exitCode = EXIT.no;
    });
  audit
    .command('query <dir>')
    .description('events as JSON lines, filtered')
    .option('--kind <kind>', 'such as auth.failed')
    .option('--reason <code>', 'such as AUTH_WRONG_NODE')
    .option('--spiffe-id <id>', 'source or destination')
    .action((dir: string, filter: { kind?: string; reason?: string; spiffeId?: string }) => {
      const { kind, ...rest } = filter;
      const events = readEvents(dir, { ...rest, ...(kind === undefined ? {} : { kinds: [kind as AuditKind] }) });
      for (const event of events) process.stdout.write(`${JSON.stringify(event)}\n`);
    });
}
