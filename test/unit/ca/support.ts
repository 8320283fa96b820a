/** A certificate authority in a directory of its own, with a clock that stands still until it is moved. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type CertificateAuthority,
  type CertificateAuthorityOptions,
  openCertificateAuthority,
} from '../../../ca/api.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';

export const TD = 'example.org' as TrustDomain;
export const START = Date.UTC(2026, 5, 15, 12);
export const FRONTEND = spiffeId('spiffe://example.org/ns/shop/sa/frontend');
export const NODE_A = spiffeId('spiffe://example.org/node/a');
export const NAME_A = 'a' as NodeName;

export class TestClock {
  #nowMs = START;

  nowMs(): number {
    return this.#nowMs;
  }

  bootNs(): bigint {
    return BigInt(this.#nowMs) * 1_000_000n;
  }

  move(ms: number): void {
    this.#nowMs += ms;
  }
}

export interface TestCa {
  readonly directory: string;
  readonly clock: TestClock;
  open(options?: Partial<CertificateAuthorityOptions>): Promise<CertificateAuthority>;
}

/** What is opened is closed, and the directory removed, when `use` is done. */
export async function withCa<T>(use: (test: TestCa) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-ca-'));
  const clock = new TestClock();
  const opened: CertificateAuthority[] = [];
  const open = async (options: Partial<CertificateAuthorityOptions> = {}) => {
    const ca = await openCertificateAuthority({ directory, trustDomain: TD, clock, ...options });
    opened.push(ca);
    return ca;
  };
  try {
    return await use({ directory, clock, open });
  } finally {
    for (const ca of opened) ca.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

export function workloadRequest(csr = createCsr(generateKey())) {
  return { csr, spiffeId: FRONTEND, node: NODE_A, requester: NODE_A };
}

export function bundleOf(ca: CertificateAuthority): TrustBundle {
  return { trustDomain: TD, authorities: ca.bundle().authorities };
}
