/** How long this node goes on without the identity server: what ends first, when, and what stops with it. */
import type { ServerClientStatus } from './server-client/api.ts';
import type { WorkloadSvids } from './server-client/svids.ts';

interface Ending {
  /** ISO 8601. */
  readonly until: string;
  readonly forSeconds: number;
  /** What stops then. */
  readonly then: string;
}

export interface Survival extends Ending {
  /** Which of the three below ends first. */
  readonly first: 'jwtSvids' | 'workloadSvids' | 'nodeSvid';
  readonly nodeSvid: Ending;
  /** Not there: the node has none. `until`: the first of them; `entry`: whose. */
  readonly workloadSvids?: Ending & { readonly held: number; readonly lastUntil: string; readonly entry: string };
  /** Not there: none was asked for. */
  readonly jwtSvids?: Ending & { readonly held: number; readonly lastUntil: string };
  /** Entries without a valid SVID: they get none before the server is back. */
  readonly withoutSvid: readonly string[];
}

interface Holdings {
  readonly status: Pick<ServerClientStatus, 'nodeSvidNotAfterMs'>;
  readonly svids: Pick<WorkloadSvids, 'entries' | 'jwtEnds'>;
  readonly nowMs: number;
}

/** If the server were gone from now on, or as it is gone. */
export function withoutServer({ status, svids, nowMs }: Holdings): Survival {
  const ending = (ms: number, then: string): Ending => ({
    until: new Date(ms).toISOString(),
    forSeconds: Math.max(0, Math.floor((ms - nowMs) / 1000)),
    then,
  });
  const entries = svids.entries();
  const held = entries
    .flatMap(({ entry, svid }) => (svid === undefined || svid.notAfterMs < nowMs ? [] : [{ entry, svid }]))
    .sort((a, b) => a.svid.notAfterMs - b.svid.notAfterMs);
  const names = new Set(held.map(({ entry }) => entry.id));
  const jwts = svids.jwtEnds();
  const all = {
    nodeSvid: ending(
      status.nodeSvidNotAfterMs,
      'channels to other nodes close, what they prove and vouch for ends within a lease; the agent ends and must attest anew',
    ),
    ...(held.length === 0
      ? {}
      : {
          workloadSvids: {
            ...ending(
              held[0]!.svid.notAfterMs,
              'this workload proves itself to nobody any more: what policy requires to be authenticated is dropped',
            ),
            held: held.length,
            lastUntil: new Date(held.at(-1)!.svid.notAfterMs).toISOString(),
            entry: held[0]!.entry.id,
          },
        }),
    ...(jwts.count === 0
      ? {}
      : {
          jwtSvids: {
            ...ending(jwts.firstMs, 'asking for it again fails; audiences not asked for before fail at once'),
            held: jwts.count,
            lastUntil: new Date(jwts.lastMs).toISOString(),
          },
        }),
  };
  const kinds = ['jwtSvids', 'workloadSvids', 'nodeSvid'] as const;
  const first = kinds.reduce((a, b) => ((all[b]?.until ?? '~') < (all[a]?.until ?? '~') ? b : a));
  const { until, forSeconds, then } = all[first]!;
  return {
    first,
    until,
    forSeconds,
    then,
    ...all,
    withoutSvid: entries.map(({ entry }) => entry.id).filter((id) => !names.has(id)),
  };
}
