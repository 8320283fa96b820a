/** Proven pairs into auth entries: with the least of all ends, written in one call, beside what they rest on. */
import type { Clock } from '../base/clock.ts';
import { type AuthEntries, type AuthRecord, authKeyText } from './auth-entries.ts';
import type { ProvenPair } from './exchange-host.ts';
import type { AuthSettings } from './ports.ts';
import { nsOfMs } from './units.ts';

/** Ends at the least of both SVIDs' notAfter, the greatest age, and what the peer says of its own entry. */
export function writeProven(
  entries: AuthEntries,
  pairs: readonly ProvenPair[],
  { clock, settings }: { readonly clock: Clock; readonly settings: Pick<AuthSettings, 'maxAuthAgeMs'> },
): AuthRecord[] {
  const nowMs = clock.nowMs();
  const nowNs = clock.bootNs();
  const records = new Map<string, AuthRecord>();
  const written = pairs.map((pair): AuthRecord => {
    const { own, remoteProof, initiated, correlation, local, remote } = pair;
    const untilMs = Math.min(
      remoteProof.validUntilMs,
      own.svid.notAfterMs,
      nowMs + settings.maxAuthAgeMs,
      pair.peerUntilMs ?? Number.POSITIVE_INFINITY,
    );
    const key = { local, remote, remoteNode: remoteProof.node, authType: 'spiffe' } as const;
    const record: AuthRecord = {
      local,
      remote,
      remoteNode: remoteProof.node,
      authType: 'spiffe',
      expiresAtNs: nowNs + nsOfMs(Math.max(0, untilMs - nowMs)),
      // Read when the verification began: one that was raised meanwhile makes the entry a miss.
      epoch: remoteProof.epoch,
      own,
      remoteProof,
      initiated,
      renews: entries.get(key) !== undefined,
      writtenAtNs: nowNs,
      correlation,
    };
    records.set(authKeyText(key), record);
    return record;
  });
  entries.write([...records.values()]);
  return written;
}
