/** What this node is, on disk: key, certificate, id, incarnation, bundle. One file of mode 0600, replaced as a whole, so that key and certificate always fit. */
import { createHash } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CountersignError } from '../../base/errors.ts';
import type { Svid } from '../../model/identity.ts';
import { type NodeId, nodeId, type SpiffeId, type TrustDomain } from '../../model/ids.ts';
import { trustDomainOf } from '../../model/spiffe-id.ts';
import { parseCertificate } from '../../pki/certificate.ts';
import { privateKeyFromPem, privateKeyPem, publicKeyDer } from '../../pki/keys.ts';
import { type OwnBundle, ownBundleOf } from './bundles.ts';
import type { Life } from './life.ts';

const FILE = 'node-identity.json';

export interface NodeState {
  readonly svid: Svid;
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly nodeId: NodeId;
  readonly incarnation: bigint;
  /** The newest that the server sent. */
  readonly bundle: OwnBundle;
  /** Number of the last Sync stream; 0: there was none. */
  readonly session: bigint;
  /** The machine's life in which the incarnation was issued. undefined: nobody wrote it down. */
  readonly life: Life | undefined;
}

const jwtAuthority = z.strictObject({
  keyId: z.string(),
  publicKey: z.base64(),
  expiresAtMs: z.number().optional(),
  tainted: z.boolean().optional(),
});

const schema = z.strictObject({
  version: z.union([z.literal(1), z.literal(2), z.literal(3)]),
  spiffeId: z.string(),
  /** PEM. */
  privateKey: z.string(),
  chain: z.array(z.base64()).min(1),
  nodeId: z.number().int(),
  incarnation: z.string().regex(/^\d+$/),
  bundle: z.array(z.base64()).min(1),
  /** Not before version 3. */
  bundleSequence: z.string().regex(/^\d+$/).default('0'),
  refreshHintSeconds: z.number().int().optional(),
  jwtAuthorities: z.array(jwtAuthority).optional(),
  taintedKeyIds: z.array(z.string()).default([]),
  pinned: z.string(),
  /** Not in version 1. */
  session: z.string().regex(/^\d+$/).default('0'),
  life: z.strictObject({ bootId: z.string(), offsetMs: z.number() }).optional(),
});

/**
 * The state that was saved, or undefined if there is none or if it belongs to another bundle than the one that was handed
 * out: then this node must attest anew. @throws CountersignError if the file is damaged.
 */
export function loadNodeState(dir: string, spiffeId: SpiffeId, pinned: readonly Buffer[]): NodeState | undefined {
  const path = join(dir, FILE);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new CountersignError('permission-denied', `${path}: cannot be read; check its owner`, { cause: thrown });
  }
  const damaged = () =>
    new CountersignError('bad-input', `${path}: damaged; remove it and join again with a fresh join token`);
  const parsed = schema.safeParse(parseJson(text));
  if (!parsed.success) throw damaged();
  const state = parsed.data;
  const authorities = state.bundle.map((der) => Buffer.from(der, 'base64'));
  const isSamePinned = state.pinned === digestOf(pinned);
  const known = isSamePinned || pinned.some((der) => authorities.some((other) => other.equals(der)));
  if (!known || state.spiffeId !== spiffeId) return undefined;
  const trustDomain = trustDomainOf(spiffeId);
  const chain = state.chain.map((der) => Buffer.from(der, 'base64'));
  const leaf = parseCertificate(chain[0]!);
  const privateKey = privateKeyFromPem(state.privateKey);
  if (!leaf.ok || !publicKeyDer(privateKey).equals(publicKeyDer(leaf.value.publicKey))) throw damaged();
  const { notBeforeMs, notAfterMs } = leaf.value;
  return {
    svid: { spiffeId, chain, privateKey, notAfterMs },
    notBeforeMs,
    nodeId: nodeId(state.nodeId),
    incarnation: BigInt(state.incarnation),
    // A bundle that was handed out since is the last word of whoever runs this node, until the server sends its own.
    bundle: isSamePinned ? bundleOf(state, trustDomain, authorities) : ownBundleOf(trustDomain, pinned),
    session: BigInt(state.session),
    life: state.life,
  };
}

function bundleOf(state: z.infer<typeof schema>, trustDomain: TrustDomain, authorities: readonly Buffer[]): OwnBundle {
  const { bundleSequence, refreshHintSeconds, jwtAuthorities, taintedKeyIds } = state;
  return {
    bundle: {
      trustDomain,
      authorities,
      sequence: BigInt(bundleSequence),
      ...(refreshHintSeconds === undefined ? {} : { refreshHintSeconds }),
      ...(jwtAuthorities === undefined
        ? {}
        : {
            jwtAuthorities: jwtAuthorities.map(({ keyId, publicKey, expiresAtMs, tainted }) => ({
              keyId,
              publicKey: Buffer.from(publicKey, 'base64'),
              ...(expiresAtMs === undefined ? {} : { expiresAtMs }),
              ...(tainted === undefined ? {} : { tainted }),
            })),
          }),
    },
    tainted: new Set(taintedKeyIds),
  };
}

/** Durable when it returns. */
export function saveNodeState(dir: string, state: NodeState, pinned: readonly Buffer[]): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  chmodSync(dir, 0o700);
  const path = join(dir, FILE);
  rmSync(`${path}.new`, { force: true });
  const fd = openSync(`${path}.new`, 'wx', 0o600);
  try {
    const { authorities, sequence, refreshHintSeconds, jwtAuthorities } = state.bundle.bundle;
    const content: z.infer<typeof schema> = {
      version: 3,
      spiffeId: state.svid.spiffeId,
      privateKey: privateKeyPem(state.svid.privateKey),
      chain: state.svid.chain.map((der) => der.toString('base64')),
      nodeId: state.nodeId,
      incarnation: String(state.incarnation),
      bundle: authorities.map((der) => der.toString('base64')),
      bundleSequence: String(sequence ?? 0n),
      refreshHintSeconds,
      jwtAuthorities: jwtAuthorities?.map((authority) => ({
        ...authority,
        publicKey: authority.publicKey.toString('base64'),
      })),
      taintedKeyIds: [...state.bundle.tainted],
      pinned: digestOf(pinned),
      session: String(state.session),
      life: state.life,
    };
    // repeated until all of it is written: a full disk may take a part and say nothing
    writeFileSync(fd, JSON.stringify(content));
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(`${path}.new`, path);
}

function digestOf(bundle: readonly Buffer[]): string {
  const hash = createHash('sha256');
  for (const der of bundle) hash.update(createHash('sha256').update(der).digest());
  return hash.digest('hex');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
