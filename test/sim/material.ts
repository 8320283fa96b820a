/** Keys and certificates, made once for each worker by the real authority: every schedule uses the same. */

import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCertificateAuthority } from '../../ca/api.ts';
import { err, ok, type Result } from '../../src/base/errors.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { PeerChannel } from '../../src/channel/peer-channel.ts';
import { rawPrivateKey, rawPublicKey, type TunnelKey } from '../../src/encryption/key-file.ts';
import type { Svid, TrustBundle } from '../../src/model/identity.ts';
import type { NodeName, SecurityIdentity, SpiffeId, TrustDomain } from '../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey, publicKeyDer } from '../../src/pki/keys.ts';

export const DOMAIN = 'example.org' as TrustDomain;
export const NODES = ['a', 'b', 'c'] as const;
/** Identities 256 to 261, /w0 to /w5. */
export const IDENTITIES = [256, 257, 258, 259, 260, 261].map((n) => n as SecurityIdentity);
const START_MS = Date.UTC(2026, 0, 1, 11, 55);

export function workloadSpiffeId(identity: SecurityIdentity): SpiffeId {
  return spiffeId(`spiffe://${DOMAIN}/w${identity - 256}`);
}

export class Material {
  readonly #svids = new Map<string, Svid>();
  readonly #nodeSvids = new Map<string, Svid>();
  readonly #nodeCertificates = new Map<string, PeerChannel['peerCertificate']>();
  readonly #tunnelKeys = new Map<string, TunnelKey>();
  readonly #publicKeys = new Map<string, string>();
  readonly #names = new Map<string, string>();
  #bundle: TrustBundle = { trustDomain: DOMAIN, authorities: [] };

  static async create(): Promise<Material> {
    const material = new Material();
    const directory = mkdtempSync(join(tmpdir(), 'cs-sim-'));
    const clock = { nowMs: () => START_MS, bootNs: () => 0n };
    const ca = await openCertificateAuthority({ directory: join(directory, 'ca'), trustDomain: DOMAIN, clock });
    try {
      material.#bundle = { trustDomain: DOMAIN, authorities: ca.bundle().authorities };
      for (const name of NODES) {
        const node = nodeSpiffeId(DOMAIN, name as NodeName);
        for (const identity of IDENTITIES) {
          const id = workloadSpiffeId(identity);
          const privateKey = generateKey();
          const issued = await ca.issueWorkloadSvid({
            csr: createCsr(privateKey),
            spiffeId: id,
            node,
            requester: 'sim',
          });
          if (!issued.ok) throw new Error(issued.error);
          const { chain, notAfterMs } = issued.value;
          material.#svids.set(`${name}/${identity}`, { spiffeId: id, chain, privateKey, notAfterMs });
        }
        const privateKey: KeyObject = generateKey();
        material.#nodeSvids.set(name, { spiffeId: node, chain: [], privateKey, notAfterMs: Number.MAX_SAFE_INTEGER });
        const publicKey = createPublicKey({ key: publicKeyDer(privateKey), format: 'der', type: 'spki' });
        material.#nodeCertificates.set(name, { publicKey } as PeerChannel['peerCertificate']);
        material.#addTunnelKey(name);
      }
    } finally {
      ca.close();
      rmSync(directory, { recursive: true, force: true });
    }
    return material;
  }

  svid(node: string, identity: SecurityIdentity): Result<Svid, ReasonCode> {
    const svid = this.#svids.get(`${node}/${identity}`);
    return svid === undefined ? err('AUTH_NO_SVID') : ok(svid);
  }

  nodeSvid(name: string): Svid {
    return this.#nodeSvids.get(name)!;
  }

  nodeCertificate(name: string): PeerChannel['peerCertificate'] {
    return this.#nodeCertificates.get(name)!;
  }

  tunnelKey(name: string): TunnelKey {
    return this.#tunnelKeys.get(name)!;
  }

  publicKeyOf(rawPrivate: Buffer): string {
    return this.#publicKeys.get(rawPrivate.toString('hex'))!;
  }

  /** Of the node that has this tunnel key. */
  nameOfKey(key: string): string {
    return this.#names.get(key) ?? '';
  }

  bundleOf(trustDomain: TrustDomain): TrustBundle | undefined {
    return trustDomain === DOMAIN ? this.#bundle : undefined;
  }

  #addTunnelKey(name: string): void {
    const pair = generateKeyPairSync('x25519');
    const publicKey = rawPublicKey(pair.publicKey);
    // Exported at every start of an agent, and wiped afterwards: a copy each time.
    const exported = pair.privateKey.export({ type: 'pkcs8', format: 'der' });
    const privateKey = { export: () => Buffer.from(exported) } as unknown as KeyObject;
    this.#tunnelKeys.set(name, { number: 1, privateKey, publicKey });
    this.#publicKeys.set(rawPrivateKey(pair.privateKey).toString('hex'), publicKey.toString('hex'));
    this.#names.set(publicKey.toString('hex'), name);
  }
}
