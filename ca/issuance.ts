/**
 * Issuing as a pipeline: the request is read and verified, then plan → lint → sign → ledger. Requests of one turn of the event loop go through it
 * together, step by step: one commit serves all of them, and each step's code and tables stay in the processor's cache (a quarter less
 * time for each certificate than one after the other). The rule: no certificate leaves before its ledger row is on disk.
 */
import { hash } from 'node:crypto';
import { asError, CountersignError, err, ok, type Result } from '../src/base/errors.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import type { SpiffeId } from '../src/model/ids.ts';
import { type ParsedCsr, parseCsr, verifyParsedCsr } from '../src/pki/csr.ts';
import { buildTbs } from './build.ts';
import type { Ledger, LedgerRow } from './ledger.ts';
import { type Linted, lintTbs } from './lint.ts';
import type { CertificatePlan } from './profile.ts';
import { randomSerial, serialHex } from './serial.ts';
import { signCertificate } from './sign.ts';
import type { Signer } from './signer.ts';

/** Bounds how long one turn holds the event loop: about 10 ms. */
const MAX_BATCH = 64;

export interface IssuedSvid {
  readonly spiffeId: SpiffeId;
  /** DER, leaf first, without the root. */
  readonly chain: Buffer[];
  /** Lower-case hex, no leading zeros beyond one byte. */
  readonly serial: string;
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** ISSUE_CSR_INVALID, CERT_WEAK_KEY, CERT_TRUST_DOMAIN or CERT_NO_PATH. */
export type IssueOutcome = Result<IssuedSvid, ReasonCode>;

/** What every job can do at any step: end. */
interface Pending {
  readonly plan: CertificatePlan;
  readonly requester: string;
  readonly resolve: (outcome: IssueOutcome) => void;
  readonly reject: (error: Error) => void;
}

interface Job extends Pending {
  readonly csr: Buffer;
}

interface ParsedJob extends Pending {
  readonly csr: ParsedCsr;
}

interface BuiltJob extends ParsedJob {
  readonly serial: string;
  readonly tbs: Buffer;
}

interface LintedJob extends BuiltJob {
  readonly linted: Linted;
}

interface SignedJob extends LintedJob {
  readonly certificate: Buffer;
}

export class Issuance {
  readonly #signer: Signer;
  readonly #ledger: Ledger;
  readonly #nowMs: () => number;
  #waiting: Job[] = [];
  #scheduled: NodeJS.Immediate | undefined;
  #closed = false;

  constructor(signer: Signer, ledger: Ledger, nowMs: () => number) {
    this.#signer = signer;
    this.#ledger = ledger;
    this.#nowMs = nowMs;
  }

  /** Rejects with CountersignError if lint refuses the plan (bad-input) or the ledger cannot be written (unavailable). */
  issue(csr: Buffer, plan: CertificatePlan, requester: string): Promise<IssueOutcome> {
    if (this.#closed) return Promise.reject(new CountersignError('unavailable', 'the certificate authority is closed'));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ csr, plan, requester, resolve, reject });
      this.#scheduled ??= setImmediate(() => this.#turn());
    });
  }

  /** Finishes what waits. */
  close(): void {
    this.#closed = true;
    while (this.#waiting.length > 0) this.#turn();
  }

  #turn(): void {
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
    const jobs = this.#waiting.splice(0, MAX_BATCH);
    this.#scheduled = this.#waiting.length > 0 ? setImmediate(() => this.#turn()) : undefined;
    const verified = step(step(jobs, parse), verify);
    const built = step(verified, (job) => this.#build(job));
    const linted = step(built, (job) => this.#lint(job));
    const signed = step(linted, (job) => this.#sign(job));
    if (signed.length === 0) return;
    try {
      this.#ledger.append(signed.map((job) => rowOf(job, this.#nowMs())));
    } catch (thrown) {
      const error = new CountersignError('unavailable', `the ledger could not be written: ${asError(thrown).message}`);
      for (const job of signed) job.reject(error);
      return;
    }
    for (const job of signed) job.resolve(ok(issuedOf(job)));
  }

  #build(job: ParsedJob): BuiltJob {
    const serial = randomSerial();
    const tbs = buildTbs(job.plan, this.#signer, job.csr.spki, serial);
    return { ...job, serial: serialHex(serial), tbs };
  }

  #lint(job: BuiltJob): LintedJob {
    const linted = lintTbs(job.tbs, job.plan, this.#signer, job.csr.spki);
    // what lint refuses was our own plan: an entry with a bad DNS name, an authority about to end, a clock that went back
    if (!linted.ok) throw lintFailure(job.plan, linted.error);
    return { ...job, linted: linted.value };
  }

  #sign(job: LintedJob): SignedJob {
    return { ...job, certificate: signCertificate(job.linted) };
  }
}

function lintFailure(plan: CertificatePlan, broken: readonly string[]): CountersignError {
  return new CountersignError('bad-input', `no certificate for ${plan.spiffeId}; what must hold: ${broken.join('; ')}`);
}

/** One step for all; a job that is answered or fails goes no further. */
function step<In extends Pending, Out>(jobs: readonly In[], run: (job: In) => Out | undefined): Out[] {
  const out: Out[] = [];
  for (const job of jobs) {
    try {
      const done = run(job);
      if (done !== undefined) out.push(done);
    } catch (thrown) {
      job.reject(asError(thrown));
    }
  }
  return out;
}

function parse(job: Job): ParsedJob | undefined {
  const csr = parseCsr(job.csr);
  if (csr.ok) return { ...job, csr: csr.value };
  job.resolve(err(csr.error));
  return undefined;
}

function verify(job: ParsedJob): ParsedJob | undefined {
  if (verifyParsedCsr(job.csr)) return job;
  job.resolve(err('ISSUE_CSR_INVALID'));
  return undefined;
}

function rowOf({ plan, serial, csr, requester }: SignedJob, issuedMs: number): LedgerRow {
  const { profile, spiffeId, nodeBinding: node, notBeforeMs, notAfterMs } = plan;
  const keyId = hash('sha256', csr.spki, 'hex');
  return { serial, profile, spiffeId, node, keyId, notBeforeMs, notAfterMs, issuedMs, requester };
}

function issuedOf({ plan, serial, certificate }: SignedJob): IssuedSvid {
  const { spiffeId, notBeforeMs, notAfterMs } = plan;
  return { spiffeId, chain: [certificate], serial, notBeforeMs, notAfterMs };
}
