/** JWT-SVIDs: signed by the active JWT key and recorded before they leave. Those of one turn of the event loop share a commit. */
import { asError, CountersignError } from '../src/base/errors.ts';
import type { SpiffeId } from '../src/model/ids.ts';
import { audienceProblem, jwtFrom, jwtSvidSigningInput } from '../src/pki/jwt.ts';
import type { SigningKey } from './keys/key-manager.ts';
import { SIGNING } from './keys/key-type.ts';
import type { JwtRow, Ledger } from './ledger.ts';
import type { TtlLimits } from './profile.ts';
import { randomSerial } from './serial.ts';
import { Turns } from './turns.ts';

/** Bounds how long one turn holds the event loop: about 15 ms. */
const MAX_BATCH = 256;

/** 5 minutes: a token cannot be taken back by itself (JWT-SVID, section 7, wants it short). */
export const DEFAULT_JWT_TTL: TtlLimits = { defaultTtlSeconds: 300, maxTtlSeconds: 3600 };

export interface JwtSvidRequest {
  readonly spiffeId: SpiffeId;
  /** At least one, none of them empty. */
  readonly audience: readonly string[];
  /** The default (5 minutes) if not given; cut to the limit and to the key's end. */
  readonly ttlSeconds?: number;
  /** SPIFFE ID of the node whose workload it is for. */
  readonly node: SpiffeId;
  /** Who asked, for the ledger. */
  readonly requester: string;
  /** The iss claim, for relying parties that speak OpenID Connect; without it there is none. */
  readonly issuer?: string;
}

export interface IssuedJwtSvid {
  /** JWS, compact. */
  readonly token: string;
  /** Unix ms, whole seconds. */
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
  /** The kid in its header. */
  readonly keyId: string;
}

/** Who signs tokens now. */
export interface JwtIssuing {
  readonly key: SigningKey;
  /** The kid. */
  readonly id: string;
  /** Unix ms. */
  readonly notAfterMs: number;
}

interface Job {
  readonly request: JwtSvidRequest;
  readonly resolve: (issued: IssuedJwtSvid) => void;
  readonly reject: (error: Error) => void;
}

export interface JwtIssuanceOptions {
  /** Throws CountersignError if nobody signs. */
  readonly issuing: () => JwtIssuing;
  readonly ledger: Ledger;
  readonly nowMs: () => number;
  readonly ttl: TtlLimits;
}

export class JwtIssuance {
  readonly #options: JwtIssuanceOptions;
  readonly #turns = new Turns<Job>(MAX_BATCH, (jobs) => this.#turn(jobs));

  constructor(options: JwtIssuanceOptions) {
    this.#options = options;
  }

  /** Rejects with CountersignError: bad-input for an audience that is none, unavailable if key or ledger are. */
  issue(request: JwtSvidRequest): Promise<IssuedJwtSvid> {
    const problem = audienceProblem(request.audience);
    if (problem !== undefined) return Promise.reject(new CountersignError('bad-input', `audience: ${problem}`));
    return new Promise((resolve, reject) => {
      this.#turns.add({ request, resolve, reject });
    });
  }

  /** Finishes what waits. */
  close(): void {
    this.#turns.close();
  }

  #turn(jobs: readonly Job[]): void {
    const { ledger, issuing } = this.#options;
    try {
      const signing = issuing();
      const done = jobs.map((job) => ({ job, ...this.#sign(job.request, signing) }));
      ledger.appendJwts(done.map(({ row }) => row));
      for (const { job, issued } of done) job.resolve(issued);
    } catch (thrown) {
      const error =
        thrown instanceof CountersignError
          ? thrown
          : new CountersignError('unavailable', `the ledger could not be written: ${asError(thrown).message}`);
      for (const job of jobs) job.reject(error);
    }
  }

  #sign(request: JwtSvidRequest, { key, id, notAfterMs }: JwtIssuing): { issued: IssuedJwtSvid; row: JwtRow } {
    const { nowMs, ttl } = this.#options;
    const { spiffeId, node, audience, requester, ttlSeconds, issuer } = request;
    const issuedAt = Math.floor(nowMs() / 1000);
    const wished = Math.max(1, Math.floor(Math.min(ttlSeconds ?? ttl.defaultTtlSeconds, ttl.maxTtlSeconds)));
    const expiresAt = Math.min(issuedAt + wished, Math.floor(notAfterMs / 1000));
    if (expiresAt <= issuedAt) throw new CountersignError('unavailable', `the JWT key ${id} has ended`);
    const jti = randomSerial().toString('hex');
    const input = jwtSvidSigningInput({
      alg: SIGNING[key.type].jws,
      kid: id,
      spiffeId,
      audience,
      issuedAt,
      expiresAt,
      jti,
      ...(issuer === undefined ? {} : { issuer }),
    });
    const token = jwtFrom(input, key.signJws(Buffer.from(input, 'latin1')));
    const [issuedAtMs, expiresAtMs] = [issuedAt * 1000, expiresAt * 1000];
    return {
      issued: { token, issuedAtMs, expiresAtMs, keyId: id },
      row: { jti, authority: id, spiffeId, node, audience, issuedMs: nowMs(), expiresMs: expiresAtMs, requester },
    };
  }
}
