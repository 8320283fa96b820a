/** The server's own SVID is renewed at half its life; after a failure again in a while. */
import type { Clock } from '../src/base/clock.ts';
import { asError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import { systemTimers } from '../src/base/timers.ts';
import type { Signer } from './signer.ts';

const RETRY_MS = 10_000;

/** Returns what ends it. */
export function keepRenewed(signer: Signer, clock: Clock, log: Logger, renew: () => Promise<void>): () => void {
  let cancel = () => {};
  const half = () => (signer.svid.notBeforeMs + signer.svid.notAfterMs) / 2 - clock.nowMs();
  const plan = (waitMs: number) => {
    cancel = systemTimers.set(waitMs, () => void renewal());
  };
  const renewal = async () => {
    try {
      if (half() <= 0) await renew();
      plan(Math.max(half(), 1000));
    } catch (thrown) {
      log.error({ err: asError(thrown) }, 'the server could not renew its own SVID');
      plan(RETRY_MS);
    }
  };
  plan(Math.max(half(), 1000));
  return () => cancel();
}
