/** A log in a directory of its own, a clock that stands still, and a node whose SVID certifies the log's key. */
import { sign } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import type { Certify } from '../../../src/audit/key.ts';
import { type AuditLog, type AuditLogOptions, openAuditLog } from '../../../src/audit/log.ts';
import type { Clock } from '../../../src/base/clock.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';

export const ORIGIN = 'example.org/node/node-a';
export const NOW_MS = 1_763_702_740_000;
export const log = createLogger('test', 'silent');

export class StandingClock implements Clock {
  wallMs = NOW_MS;
  boot = 5_000_000_000n;

  nowMs(): number {
    return this.wallMs;
  }

  bootNs(): bigint {
    return this.boot;
  }
}

export function temporaryDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), 'cs-t-audit-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Signs by hand only: no checkpoint comes in between. */
export function openLog(dir: string, options: Partial<AuditLogOptions> = {}): AuditLog {
  return openAuditLog({
    dir,
    origin: ORIGIN,
    clock: new StandingClock(),
    log,
    checkpointIntervalMs: 3_600_000,
    flushIntervalMs: 3_600_000,
    ...options,
  });
}

/** A closed log with this many events and a checkpoint after each of `checkpoints`. */
export async function filledLog(events: number, checkpoints: readonly number[] = []): Promise<string> {
  const dir = temporaryDirectory();
  await fill(openLog(dir), events, checkpoints);
  return dir;
}

export async function fill(auditLog: AuditLog, events: number, checkpoints: readonly number[] = []): Promise<void> {
  for (let i = 0; i < events; i++) {
    auditLog.emit({ kind: 'auth.succeeded', correlation: `c${i}`, detail: { i } });
    if (checkpoints.includes(i + 1)) await auditLog.checkpoint();
  }
  await auditLog.close();
}

export async function nodeOf(
  trustDomain: string,
  name: string,
): Promise<{ certify: Certify; bundle: TrustBundle; notAfterMs: number }> {
  const ca = await openCertificateAuthority({
    directory: temporaryDirectory(),
    trustDomain: trustDomain as TrustDomain,
    clock: new StandingClock(),
  });
  const privateKey = generateKey();
  const issued = await ca.issueNodeSvid({
    csr: createCsr(privateKey),
    name: name as NodeName,
    incarnation: 1n,
    requester: 'test',
  });
  if (!issued.ok) throw new Error(issued.error);
  const { authorities } = ca.bundle();
  ca.close();
  return {
    certify: (bytes) => ({ chain: issued.value.chain, signature: sign('sha256', bytes, privateKey) }),
    bundle: { trustDomain: trustDomain as TrustDomain, authorities },
    notAfterMs: issued.value.notAfterMs,
  };
}
