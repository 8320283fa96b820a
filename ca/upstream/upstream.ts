/** Who signs our authority's certificate, when it does not do so itself: one interface for certificate files, Vault and another identity server. */
import type { Clock } from '../../src/base/clock.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { CountersignUpstream, type CountersignUpstreamConfig } from './countersign.ts';
import { DiskUpstream, type DiskUpstreamConfig } from './disk.ts';
import { VaultUpstream, type VaultUpstreamConfig } from './vault.ts';

export interface Minted {
  /** DER: the new intermediate, then each one's issuer, without the root. */
  readonly chain: readonly Buffer[];
  /** DER: what a bundle lists. */
  readonly roots: readonly Buffer[];
}

export interface UpstreamAuthority {
  /** For lists and messages. */
  readonly name: string;
  /**
   * Has an intermediate signed for the key of a request. What comes back is proven by nothing: makeAuthority checks it.
   * @param csr PKCS#10, DER.
   * @throws CountersignError saying what to do.
   */
  mint(csr: Buffer, ttlSeconds: number): Promise<Minted>;
}

export type UpstreamConfig =
  | ({ readonly type: 'countersign' } & CountersignUpstreamConfig)
  | ({ readonly type: 'disk' } & DiskUpstreamConfig)
  | ({ readonly type: 'vault' } & VaultUpstreamConfig);

/** @throws CountersignError for files that will not do; nobody is asked before something is to be signed. */
export function openUpstream(config: UpstreamConfig, trustDomain: TrustDomain, clock: Clock): UpstreamAuthority {
  switch (config.type) {
    case 'countersign':
      return new CountersignUpstream(config, trustDomain, clock);
    case 'disk':
      return new DiskUpstream(config, trustDomain, clock);
    case 'vault':
      return new VaultUpstream(config, trustDomain);
  }
}
