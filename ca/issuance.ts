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
import type { Issuer, Signer } from './signer.ts';
import { Turns } from './turns.ts';

/** Bounds how long one turn holds the event loop: about 10 ms. */
const MAX_BATCH = 64;

export interface IssuedSvid {
  readonly spiffeId: SpiffeId;
  /** DER, leaf first, then those above it, without the root. */
  readonly chain: Buffer[];
  /** Lower-case hex, no leading zeros beyond one byte. */
  readonly serial: string;
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** ISSUE_CSR_INVALID, CERT_WEAK_KEY, CERT_TRUST_DOMAIN or CERT_NO_PATH. */
export type IssueOutcome = Result<IssuedSvid, ReasonCode>;

/** Who signs now. */
export interface Issuing {
  readonly signer: Signer & { readonly issuer: Issuer };
  /** Subject key identifier, lower-case hex. */
  readonly id: string;
  /** DER. What certificates carry behind them: empty below a root. */
  readonly chain: readonly Buffer[];
}

/** Made for who signs when the turn comes: another may have been activated since it was asked for. */
export type Planner = (issuer: Issuer) => CertificatePlan;

/** What every job can do at any step: end. */
interface Pending {
  readonly planner: Planner;
  readonly requester: string;
  readonly node: SpiffeId | undefined;
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
  readonly plan: CertificatePlan;
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
  readonly #issuing: () => Issuing;
  readonly #ledger: Ledger;
  readonly #nowMs: () => number;
  readonly #turns = new Turns<Job>(MAX_BATCH, (jobs) => this.#turn(jobs));

  /** @param issuing asked once in each turn; throws CountersignError if nobody signs. */
  constructor(issuing: () => Issuing, ledger: Ledger, nowMs: () => number) {
    this.#issuing = issuing;
    this.#ledger = ledger;
    this.#nowMs = nowMs;
  }

  /**
   * @param node for the ledger, where the certificate itself is not bound to one.
   * Rejects with CountersignError if lint refuses the plan (bad-input) or the ledger cannot be written (unavailable).
   */
  issue(csr: Buffer, planner: Planner, requester: string, node?: SpiffeId): Promise<IssueOutcome> {
    return new Promise((resolve, reject) => {
      this.#turns.add({ csr, planner, requester, node, resolve, reject });
    });
  }

  /** Finishes what waits. */
  close(): void {
    this.#turns.close();
  }

  #turn(jobs: readonly Job[]): void {
    const verified = step(step(jobs, parse), verify);
    if (verified.length === 0) return;
    let issuing: Issuing;
    try {
      issuing = this.#issuing();
    } catch (thrown) {
      for (const job of verified) job.reject(asError(thrown));
      return;
    }
    const built = step(verified, (job) => build(job, issuing));
    const linted = step(built, (job) => lint(job, issuing));
    const signed = step(linted, (job) => ({ ...job, certificate: signCertificate(job.linted) }));
    if (signed.length === 0) return;
    try {
      this.#ledger.append(signed.map((job) => rowOf(job, issuing, this.#nowMs())));
    } catch (thrown) {
      const error = new CountersignError('unavailable', `the ledger could not be written: ${asError(thrown).message}`);
      for (const job of signed) job.reject(error);
      return;
    }
    for (const job of signed) job.resolve(ok(issuedOf(job, issuing)));
  }
}

function build(job: ParsedJob, { signer }: Issuing): BuiltJob {
  const serial = randomSerial();
  const plan = job.planner(signer.issuer);
  return { ...job, plan, serial: serialHex(serial), tbs: buildTbs(plan, signer, job.csr.spki, serial) };
}

function lint(job: BuiltJob, { signer }: Issuing): LintedJob {
  const linted = lintTbs(job.tbs, job.plan, signer, job.csr.spki);
  // what lint refuses was our own plan: an entry with a bad DNS name, an authority about to end, a clock that went back
  if (!linted.ok) {
    throw new CountersignError(
      'bad-input',
      `no certificate for ${job.plan.spiffeId}; what must hold: ${linted.error.join('; ')}`,
    );
  }
  return { ...job, linted: linted.value };
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

function rowOf(job: SignedJob, { id: authority }: Issuing, issuedMs: number): LedgerRow {
  const { plan, serial, csr, requester } = job;
  const { profile, spiffeId, notBeforeMs, notAfterMs } = plan;
  const node = plan.nodeBinding ?? job.node;
  const keyId = hash('sha256', csr.spki, 'hex');
  return { serial, profile, spiffeId, node, keyId, authority, notBeforeMs, notAfterMs, issuedMs, requester };
}

function issuedOf({ plan, serial, certificate }: SignedJob, { chain }: Issuing): IssuedSvid {
  const { spiffeId, notBeforeMs, notAfterMs } = plan;
  return { spiffeId, chain: [certificate, ...chain], serial, notBeforeMs, notAfterMs };
}
