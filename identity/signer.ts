/** The server's own SVID, and with its key the signatures of the identity table. It renews itself at half its life. */
import { type KeyObject, sign } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { CertificateAuthority } from '../ca/api.ts';
import { IdentityRow, type SignedIdentity } from '../proto/gen/countersign/server/v1/server.ts';
import { CountersignError } from '../src/base/errors.ts';
import { nodeSpiffeId } from '../src/model/spiffe-id.ts';
import { parseCertificate } from '../src/pki/certificate.ts';
import { createCsr } from '../src/pki/csr.ts';
import { generateKey } from '../src/pki/keys.ts';
import { signersOf } from '../src/pki/verify.ts';
import type { TableRow } from './feed.ts';

/** What a signature of a row is over, before the row's bytes: it can be taken for nothing else that this key signs. */
const ROW_CONTEXT = Buffer.from('countersign identity row v1\n');

/** About 5 ms. */
const ROWS_PER_TURN = 100;

export interface ServerSvid {
  readonly chain: readonly Buffer[];
  readonly privateKey: KeyObject;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export class Signer {
  readonly #ca: CertificateAuthority;
  #svid: ServerSvid;
  #signed = new WeakMap<TableRow, SignedIdentity>();

  private constructor(ca: CertificateAuthority, svid: ServerSvid) {
    this.#ca = ca;
    this.#svid = svid;
  }

  static async create(ca: CertificateAuthority): Promise<Signer> {
    return new Signer(ca, await issueServerSvid(ca));
  }

  get svid(): ServerSvid {
    return this.#svid;
  }

  /** Does the server's own SVID rest on this signing key? @param id subject key identifier, lower-case hex. */
  restsOn(id: string): boolean {
    const chain = this.#svid.chain.map((der) => parseCertificate(der));
    return signersOf(chain.flatMap((parsed) => (parsed.ok ? [parsed.value] : []))).includes(id);
  }

  /**
   * @param recorded resolves when what was issued stands where a successor finds it: no handshake shows it before
   * @param rows signed before the new SVID is in use, a few at a time: with tens of thousands of them nobody waits meanwhile.
   */
  async renew(rows: Iterable<TableRow> = [], recorded: () => Promise<void> = async () => {}): Promise<void> {
    const svid = await issueServerSvid(this.#ca);
    await recorded();
    const signed = new WeakMap<TableRow, SignedIdentity>();
    let done = 0;
    for (const row of [...rows]) {
      signed.set(row, this.#signWith(svid, row));
      if (++done % ROWS_PER_TURN === 0) await nextTurn();
    }
    this.#svid = svid;
    this.#signed = signed;
  }

  /** The certify callback of the server's audit log. */
  certify(bytes: Buffer): { chain: readonly Buffer[]; signature: Buffer } {
    return { chain: this.#svid.chain, signature: sign('sha256', bytes, this.#svid.privateKey) };
  }

  /** Signed once for each row and SVID. */
  sign(row: TableRow): SignedIdentity {
    const known = this.#signed.get(row);
    if (known !== undefined) return known;
    const signed = this.#signWith(this.#svid, row);
    this.#signed.set(row, signed);
    return signed;
  }

  #signWith({ privateKey }: ServerSvid, row: TableRow): SignedIdentity {
    const bytes = Buffer.from(
      IdentityRow.encode({
        securityIdentity: row.identity,
        spiffeId: row.spiffeId,
        labels: { ...row.labels },
        sequence: BigInt(row.sequence),
        nodes: row.nodes.map((name) => nodeSpiffeId(this.#ca.trustDomain, name)),
        ports: [...row.ports],
      }).finish(),
    );
    return { row: bytes, signature: sign('sha256', Buffer.concat([ROW_CONTEXT, bytes]), privateKey) };
  }
}

async function issueServerSvid(ca: CertificateAuthority): Promise<ServerSvid> {
  const privateKey = generateKey();
  const issued = await ca.issueServerSvid({ csr: createCsr(privateKey), requester: 'server' });
  if (!issued.ok) throw new CountersignError('internal', `no SVID for the server itself: ${issued.error}`);
  const { chain, notBeforeMs, notAfterMs } = issued.value;
  return { chain, privateKey, notBeforeMs, notAfterMs };
}
