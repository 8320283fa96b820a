/** Proven pairs into auth entries: with the least of all ends, written in one call, beside what they rest on. */
import type { Clock } from '../base/clock.ts';
import type { AuthKey, AuthType } from '../model/datapath.ts';
import { type AuthEntries, type AuthRecord, authKeyText } from './auth-entries.ts';
import type { ProvenPair } from './exchange-host.ts';
import type { AuthSettings } from './ports.ts';
import { nsOfMs } from './units.ts';

interface Terms {
  readonly clock: Clock;
  readonly settings: Pick<AuthSettings, 'maxAuthAgeMs'>;
}

/** Ends at the least of both SVIDs' notAfter, the greatest age, and what the peer says of its own entry. */
export function recordOf(
  pair: ProvenPair,
  authType: AuthType,
  renews: boolean,
  { clock, settings }: Terms,
): AuthRecord {
  const { own, remoteProof, initiated, correlation, local, remote } = pair;
  const nowMs = clock.nowMs();
  const nowNs = clock.bootNs();
  const untilMs = Math.min(
    remoteProof.validUntilMs,
    own.svid.notAfterMs,
    nowMs + settings.maxAuthAgeMs,
    pair.peerUntilMs ?? Number.POSITIVE_INFINITY,
  );
  return {
    local,
    remote,
    remoteNode: remoteProof.node,
    authType,
    expiresAtNs: nowNs + nsOfMs(Math.max(0, untilMs - nowMs)),
    // Read when the verification began: one that was raised meanwhile makes the entry a miss.
    epoch: remoteProof.epoch,
    own,
    remoteProof,
    initiated,
    renews,
    writtenAtNs: nowNs,
    correlation,
  };
}

export function writeProven(entries: AuthEntries, pairs: readonly ProvenPair[], terms: Terms): AuthRecord[] {
  const records = new Map<string, AuthRecord>();
  const written = pairs.map((pair) => {
    const { local, remote, remoteProof } = pair;
    const key: AuthKey = { local, remote, remoteNode: remoteProof.node, authType: 'spiffe' };
    const record = recordOf(pair, 'spiffe', entries.get(key) !== undefined, terms);
    records.set(authKeyText(key), record);
    return record;
  });
  entries.write([...records.values()]);
  return written;
}
