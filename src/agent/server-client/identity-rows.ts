/** Is this row of the identity table the server's word? Labels count only if its signature says so. */
import { verify } from 'node:crypto';
import { IdentityRow as RowMessage, type SignedIdentity } from '../../../proto/gen/countersign/server/v1/server.ts';
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { IdentityRow, RevocationTable, TrustBundle } from '../../model/identity.ts';
import { type SpiffeId, securityIdentity } from '../../model/ids.ts';
import { nodeNameOf, parseSpiffeId, pathOf, serverSpiffeId, trustDomainOf } from '../../model/spiffe-id.ts';
import type { Certificate } from '../../pki/certificate.ts';
import { verifyX509Svid } from '../../pki/verify.ts';

/** What the signature is over, before the row's bytes. */
const ROW_CONTEXT = Buffer.from('countersign identity row v1\n');
const FIRST_CLUSTER_IDENTITY = 256;
const LAST_CLUSTER_IDENTITY = 65_535;
const MAX_LABELS = 256;
const MAX_PORTS = 64;
const PROTOCOLS_WITH_PORTS = new Set([6, 17, 132]);

export interface VerifiedRow {
  readonly row: IdentityRow;
  /** Rises each time the server changes the row. */
  readonly sequence: bigint;
}

/** The leaf that signs rows: a valid SVID of the server itself, of the bundle, not revoked. */
export function verifySigner(
  chain: readonly Buffer[],
  bundle: TrustBundle,
  revocations: RevocationTable,
  nowMs: number,
): Result<Certificate, ReasonCode> {
  const verified = verifyX509Svid(chain, bundle, nowMs);
  if (!verified.ok) return verified;
  const { spiffeId, leaf, authorities } = verified.value;
  if (spiffeId !== serverSpiffeId(bundle.trustDomain)) return err('AUTH_WRONG_SPIFFE_ID');
  const { serial, notBeforeMs } = leaf;
  const isRevoked = revocations.isRevoked({ spiffeId, serial, node: undefined, notBeforeMs, authorities });
  return isRevoked ? err('AUTH_REVOKED') : ok(leaf);
}

/**
 * The error is a sentence for the log. `nodes`: those that were read of rows before, so that thousands of rows of a node share its
 * name; filled here.
 */
export function verifyRow(
  signed: SignedIdentity,
  signer: Certificate,
  bundle: TrustBundle,
  nodes: Map<string, SpiffeId> = new Map(),
): Result<VerifiedRow, string> {
  // 1. The signature, before anything of the row is believed.
  const bytes = Buffer.concat([ROW_CONTEXT, signed.row]);
  if (!isSigned(bytes, signed.signature, signer)) return err('its signature does not verify');
  // 2. The row itself.
  let message: RowMessage;
  try {
    message = RowMessage.decode(signed.row);
  } catch {
    return err('it cannot be read');
  }
  const { securityIdentity: identity, labels, nodes: nodeTexts, sequence, ports } = message;
  if (identity < FIRST_CLUSTER_IDENTITY || identity > LAST_CLUSTER_IDENTITY) return err('its identity is out of range');
  const spiffeId = parseSpiffeId(message.spiffeId);
  if (!spiffeId.ok) return err(`its SPIFFE ID is not one: ${spiffeId.error}`);
  const { id } = spiffeId.value;
  if (trustDomainOf(id) !== bundle.trustDomain || pathOf(id) === '')
    return err('its SPIFFE ID is of another trust domain');
  if (Object.keys(labels).length > MAX_LABELS) return err('it has too many labels');
  if (ports.length > MAX_PORTS) return err('it names too many ports');
  for (const { name, protocol, port } of ports) {
    if (name === '' || !PROTOCOLS_WITH_PORTS.has(protocol) || port < 1 || port > 65_535)
      return err('a port of it is none');
  }
  for (const text of nodeTexts) {
    if (nodes.has(text)) continue;
    const node = parseSpiffeId(text);
    if (!node.ok || nodeNameOf(node.value.id) === undefined || trustDomainOf(node.value.id) !== bundle.trustDomain) {
      return err('a node of it is not one of the trust domain');
    }
    nodes.set(text, node.value.id);
  }
  const itsNodes = nodeTexts.map((text) => nodes.get(text)!);
  const row = { identity: securityIdentity(identity), spiffeId: id, labels: { ...labels }, nodes: itsNodes };
  return ok({ row: ports.length === 0 ? row : { ...row, ports }, sequence });
}

function isSigned(bytes: Buffer, signature: Buffer, signer: Certificate): boolean {
  try {
    return verify('sha256', bytes, signer.publicKey, signature);
  } catch {
    return false;
  }
}
