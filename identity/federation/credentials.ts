/** What an HTTPS server shows of itself: a certificate that others renew in its files, or this server's own SVID. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { asError, CountersignError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import { readPrivateFile, readPublicFile } from '../../src/base/private-file.ts';
import type { Timers } from '../../src/base/timers.ts';
import { privateKeyPem } from '../../src/pki/keys.ts';
import { encodePem } from '../../src/pki/pem.ts';
import type { Feed } from '../feed.ts';
import type { ServerSvid } from '../signer.ts';
import type { CertificateFiles } from './config.ts';
import type { TlsCredentials, TlsPair } from './https-server.ts';

/** How soon a renewed certificate is in use. */
const LOOK_MS = 30_000;

/** @throws CountersignError naming the file and what to do */
export function fileCredentials(files: CertificateFiles, timers: Timers, log: Logger): TlsCredentials {
  let current = readPair(files);
  return {
    get current() {
      return current;
    },
    watch(changed) {
      let cancel = () => {};
      const look = () => {
        try {
          const found = readPair(files);
          if (found.cert !== current.cert || found.key !== current.key) {
            current = found;
            changed();
          }
        } catch (thrown) {
          log.error({ err: asError(thrown) }, 'a certificate cannot be read again; the one before stays in use');
        }
        cancel = timers.set(LOOK_MS, look);
      };
      cancel = timers.set(LOOK_MS, look);
      return () => cancel();
    },
  };
}

/** @throws CountersignError */
function readPair({ certificateFile, keyFile }: CertificateFiles): TlsPair {
  const cert = readPublicFile(certificateFile).toString('utf8');
  const key = readPrivateFile(keyFile).toString('utf8');
  let fits: boolean;
  try {
    fits = new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
  } catch {
    throw new CountersignError(
      'bad-input',
      `${certificateFile}, ${keyFile}: not a certificate and its key in PEM; write them anew`,
    );
  }
  if (!fits) {
    const message = `${keyFile} is not the key of ${certificateFile}; take both from one renewal`;
    throw new CountersignError('bad-input', message);
  }
  return { cert, key };
}

/** https_spiffe: the SVID is another one whenever the feed says so. */
export function svidCredentials(svid: () => ServerSvid, feed: Pick<Feed, 'watch'>): TlsCredentials {
  return {
    get current() {
      const { chain, privateKey } = svid();
      return { cert: chain.map((der) => encodePem('CERTIFICATE', der)).join(''), key: privateKeyPem(privateKey) };
    },
    watch: (changed) =>
      feed.watch((_, change) => {
        if (change.signer === true) changed();
      }),
  };
}
