/** A small Workload API client: what `countersign svid fetch` and the tests speak with. Any SPIFFE client does as well. */
import type { KeyObject } from 'node:crypto';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { SpiffeWorkloadAPIClient, type X509SVIDResponse } from '../../proto/gen/spiffe/workload/workload.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { errorCodeOfGrpcStatus } from '../base/exit-codes.ts';
import type { SpiffeId } from '../model/ids.ts';
import { parseSpiffeId } from '../model/spiffe-id.ts';
import { type DerReader, readDer, TAG } from '../pki/der.ts';
import { privateKeyFromDer, privateKeyPem } from '../pki/keys.ts';
import { encodePem } from '../pki/pem.ts';

export interface FetchedSvid {
  readonly spiffeId: SpiffeId;
  /** DER, leaf first. */
  readonly chain: readonly Buffer[];
  readonly privateKey: KeyObject;
  /** DER, the authorities of the SVID's own trust domain. */
  readonly bundle: readonly Buffer[];
  readonly hint: string;
}

export interface SvidWatch {
  close(): void;
}

const MAX_CERTIFICATES_BYTES = 1024 * 1024;

/**
 * The caller's default X.509-SVID.
 * @throws CountersignError permission-denied if no entry matches this process, unavailable if nobody serves there or no SVID is issued yet.
 */
export async function fetchX509Svid(socketPath: string, options: { timeoutMs?: number } = {}): Promise<FetchedSvid> {
  return (await fetchX509Svids(socketPath, options))[0]!;
}

/** All of the caller's X.509-SVIDs, the default first; at least one. @throws as fetchX509Svid */
export function fetchX509Svids(
  socketPath: string,
  { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
): Promise<FetchedSvid[]> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      watch.close();
      reject(new CountersignError('unavailable', `${socketPath}: no answer within ${timeoutMs} ms`));
    }, timeoutMs);
    const settle = (act: () => void) => {
      clearTimeout(timer);
      watch.close();
      act();
    };
    const watch = watchX509Svids(
      socketPath,
      (svids) => settle(() => resolve(svids)),
      (problem) => settle(() => reject(problem)),
    );
  });
}

/** Calls onUpdate with the whole state, now and after every change; onEnd once, unless close() came first. */
export function watchX509Svids(
  socketPath: string,
  onUpdate: (svids: FetchedSvid[]) => void,
  onEnd: (problem: CountersignError) => void,
): SvidWatch {
  const client = new SpiffeWorkloadAPIClient(`unix:${socketPath}`, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_channelz': 0,
  });
  const metadata = new Metadata();
  metadata.set('workload.spiffe.io', 'true');
  const call = client.fetchX509Svid({}, metadata);
  let over = false;
  const end = (problem?: CountersignError) => {
    if (over) return;
    over = true;
    call.cancel();
    client.close();
    if (problem !== undefined) onEnd(problem);
  };
  call.on('data', (response: X509SVIDResponse) => {
    if (over) return;
    try {
      onUpdate(readResponse(response));
    } catch (thrown) {
      end(new CountersignError('bad-input', `${socketPath}: the answer is malformed: ${asError(thrown).message}`));
    }
  });
  call.on('error', (thrown: Error) => {
    const { code, details } = thrown as ServiceError;
    const said =
      code === status.UNAVAILABLE && /connect|ENOENT|ECONNREFUSED/.test(details) ? 'nobody serves there' : details;
    end(new CountersignError(errorCodeOfGrpcStatus(code), `${socketPath}: ${said}`, { cause: thrown }));
  });
  call.on('end', () => end(new CountersignError('unavailable', `${socketPath}: the stream ended`)));
  return { close: () => end() };
}

/** svid.pem (chain), key.pem (0600) and bundle.pem; each replaced whole, the key first. */
export function writeSvidFiles(svid: FetchedSvid, directory: string): void {
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const certificates = (ders: readonly Buffer[]) => ders.map((der) => encodePem('CERTIFICATE', der)).join('');
  const files: [string, string, number][] = [
    ['key.pem', privateKeyPem(svid.privateKey), 0o600],
    ['svid.pem', certificates(svid.chain), 0o644],
    ['bundle.pem', certificates(svid.bundle), 0o644],
  ];
  for (const [name, text, mode] of files) {
    const temporary = join(directory, `.${name}.${process.pid}`);
    rmSync(temporary, { force: true });
    writeFileSync(temporary, text, { mode, flag: 'wx' });
    renameSync(temporary, join(directory, name));
  }
}

function readResponse(response: X509SVIDResponse): FetchedSvid[] {
  if (response.svids.length === 0) throw new Error('it holds no SVID');
  return response.svids.map((svid) => {
    const id = parseSpiffeId(svid.spiffeId);
    if (!id.ok) throw new Error(id.error);
    return {
      spiffeId: id.value.id,
      chain: splitCertificates(svid.x509Svid),
      privateKey: privateKeyFromDer(svid.x509SvidKey),
      bundle: splitCertificates(svid.bundle),
      hint: svid.hint,
    };
  });
}

/** The standard concatenates certificates without a separator: each says its own length. */
function splitCertificates(concatenated: Buffer): Buffer[] {
  const read = (reader: DerReader) => {
    const certificates: Buffer[] = [];
    while (!reader.atEnd) certificates.push(Buffer.from(reader.whole(TAG.sequence)));
    return certificates;
  };
  const certificates = readDer(concatenated, MAX_CERTIFICATES_BYTES, read);
  if (!certificates.ok) throw new Error(`the certificates are ${certificates.error}`);
  if (certificates.value.length === 0) throw new Error('a list of certificates is empty');
  return certificates.value;
}
