/** What a peer channel asks of TLS, for both ends, and what is read off an established connection. */
import { createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Svid } from '../model/identity.ts';
import { encodePem } from '../pki/pem.ts';
import { ALPN } from './hello.ts';
import type { PeerChannel } from './peer-channel.ts';

/** Hybrid post-quantum only: a peer that has not this group is refused, not humoured. */
export const DEFAULT_GROUPS = 'X25519MLKEM768';
const CIPHERS = 'TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256';
const SIGNATURE_ALGORITHMS =
  'ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512';

export interface TlsSettings {
  /** Colon-separated TLS groups, in order of preference. */
  readonly groups: string;
}

/**
 * Options both ends share. rejectUnauthorized is off because OpenSSL's verdict is not ours: TLS still proves possession
 * of the leaf's key, and NodeVerifier judges the chain before a byte of application data is believed.
 */
export function tlsOptions(settings: TlsSettings) {
  return {
    minVersion: 'TLSv1.3',
    maxVersion: 'TLSv1.3',
    ecdhCurve: settings.groups,
    ciphers: CIPHERS,
    sigalgs: SIGNATURE_ALGORITHMS,
    rejectUnauthorized: false,
    ALPNProtocols: [ALPN],
  } as const;
}

/**
 * The own node SVID as TLS wants it. `ca` is empty on purpose: no list of authorities is sent, and OpenSSL trusts none.
 * The key leaves its KeyObject only into the TLS context.
 */
export function tlsCredentials(svid: Svid) {
  return {
    key: svid.privateKey.export({ type: 'pkcs8', format: 'pem' }),
    cert: svid.chain.map((der) => encodePem('CERTIFICATE', der)).join(''),
    ca: [],
  };
}

const contexts = new WeakMap<Svid, SecureContext>();

/** For dialing; made once for each SVID. All dials of a process share their settings. */
export function secureContextOf(svid: Svid, settings: TlsSettings): SecureContext {
  let context = contexts.get(svid);
  if (context === undefined) {
    const { minVersion, maxVersion, ecdhCurve, ciphers, sigalgs } = tlsOptions(settings);
    const common = { minVersion, maxVersion, ecdhCurve, ciphers, sigalgs };
    context = createSecureContext({ ...tlsCredentials(svid), ...common });
    contexts.set(svid, context);
  }
  return context;
}

/** What must hold of the connection itself before anybody is asked who he is. */
export function checkConnection(socket: TLSSocket): Result<void, ReasonCode> {
  if (socket.getProtocol() !== 'TLSv1.3') return err('PEER_HANDSHAKE_FAILED');
  // SSL_OP_NO_TICKET does not keep tickets from being sent; a resumed session skips the certificate.
  if (socket.isSessionReused()) return err('PEER_RESUMPTION_REFUSED');
  // A side that offers no ALPN at all still connects.
  if (socket.alpnProtocol !== ALPN) return err('PEER_ALPN_MISMATCH');
  return ok(undefined);
}

/** Suffix of the cipher suite's name (RFC 8446, appendix B.4). */
export function hashOf(socket: TLSSocket): PeerChannel['hash'] {
  return socket.getCipher().standardName.endsWith('SHA384') ? 'sha384' : 'sha256';
}

/** From an error of the handshake. OpenSSL's texts carry no secret, but they are not reasons. */
export function reasonOfError(error: unknown): ReasonCode {
  const code = (error as NodeJS.ErrnoException | undefined)?.code ?? '';
  if (code.includes('NO_APPLICATION_PROTOCOL')) return 'PEER_ALPN_MISMATCH';
  if (/^(ECONNREFUSED|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|EADDRNOTAVAIL|EINVAL|EACCES)$/.test(code)) {
    return 'PEER_UNREACHABLE';
  }
  return 'PEER_HANDSHAKE_FAILED';
}
