/** An identity kept up to date for as long as somebody follows it: the X.509-SVID as it is pushed, the JWT-SVID at half its life. */
import type { Clock } from '../../base/clock.ts';
import { CountersignError } from '../../base/errors.ts';
import type { Timers } from '../../base/timers.ts';
import type { SpiffeId } from '../../model/ids.ts';
import { type FetchedJwtSvid, type FetchedSvid, fetchJwtSvid, type SvidWatch, watchX509Svids } from '../client.ts';

export interface Wanted {
  /** Left out: the default SVID, the first. */
  readonly spiffeId?: SpiffeId;
  readonly hint?: string;
}

export interface Identity {
  readonly svid: FetchedSvid;
  /** undefined: none was asked for, or none could be had yet. */
  readonly jwt: FetchedJwtSvid | undefined;
}

export interface FollowOptions {
  readonly socketPath: string;
  readonly wanted: Wanted;
  /** Of the JWT-SVID; empty: none is asked for. */
  readonly audience: readonly string[];
  readonly timers: Timers;
  readonly clock: Clock;
  /** Called with the whole state after each change. */
  onIdentity(identity: Identity): void;
  /** What is held stays as it is, and it is tried again. */
  onProblem(problem: CountersignError): void;
}

const RETRY_FIRST_MS = 100;
const RETRY_MAX_MS = 5_000;

/** @throws CountersignError not-found, with what there is instead */
export function selectSvid(svids: readonly FetchedSvid[], { spiffeId, hint }: Wanted): FetchedSvid {
  const found = svids.find(
    (svid) => (spiffeId === undefined || svid.spiffeId === spiffeId) && (hint === undefined || svid.hint === hint),
  );
  if (found !== undefined) return found;
  const asked = [spiffeId, hint === undefined ? [] : `hint ${hint}`].flat().join(' with ');
  const held = svids.map((svid) => svid.spiffeId).join(', ');
  throw new CountersignError('not-found', `this process has no SVID ${asked}; it has ${held}`);
}

export function followIdentity(options: FollowOptions): { close(): void } {
  const { socketPath, wanted, audience, timers, clock } = options;
  let over = false;
  let svid: FetchedSvid | undefined;
  let jwt: FetchedJwtSvid | undefined;
  let watch: SvidWatch | undefined;
  let cancelRedial = () => {};
  let cancelJwt = () => {};
  let [dialFailures, jwtFailures] = [0, 0];

  const wait = (failures: number) =>
    Math.min(RETRY_FIRST_MS * 2 ** Math.min(failures, 10), RETRY_MAX_MS) * (0.5 + Math.random() / 2);
  const say = () => {
    if (!over && svid !== undefined) options.onIdentity({ svid, jwt });
  };
  const renewJwt = async (of: SpiffeId): Promise<void> => {
    cancelJwt();
    try {
      const fetched = await fetchJwtSvid(socketPath, audience, { spiffeId: of });
      if (over || svid?.spiffeId !== of) return;
      jwt = fetched;
      jwtFailures = 0;
      cancelJwt = timers.set(untilRenewal(fetched, clock.nowMs()), () => void renewJwt(of));
      say();
    } catch (thrown) {
      if (over || svid?.spiffeId !== of) return;
      options.onProblem(asProblem(thrown));
      cancelJwt = timers.set(wait(jwtFailures++), () => void renewJwt(of));
    }
  };
  const dial = () => {
    if (over) return;
    watch = watchX509Svids(
      socketPath,
      (svids) => {
        dialFailures = 0;
        const before = svid?.spiffeId;
        try {
          svid = selectSvid(svids, wanted);
        } catch (thrown) {
          options.onProblem(asProblem(thrown));
          return;
        }
        if (before !== svid.spiffeId) jwt = undefined;
        say();
        if (audience.length > 0 && before !== svid.spiffeId) void renewJwt(svid.spiffeId);
      },
      (problem) => {
        if (over) return;
        options.onProblem(problem);
        cancelRedial = timers.set(wait(dialFailures++), dial);
      },
    );
  };
  dial();
  return {
    close() {
      over = true;
      watch?.close();
      cancelRedial();
      cancelJwt();
    },
  };
}

/** At half its life. The agent may have had it for a while: one that is past that soon has another. */
function untilRenewal({ issuedAtMs, expiresAtMs }: FetchedJwtSvid, nowMs: number): number {
  const half = (issuedAtMs + expiresAtMs) / 2;
  return Math.max(half - nowMs, (expiresAtMs - nowMs) / 4, RETRY_FIRST_MS);
}

function asProblem(thrown: unknown): CountersignError {
  if (thrown instanceof CountersignError) return thrown;
  throw thrown;
}
