/** The certificates that the other end of a TLS connection showed: untrusted bytes for verify.ts, however they were sent. */
import type { X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';

/** A chain with more than this is not looked at further. */
const MAX_PRESENTED = 16;

/**
 * All certificates the peer presented, in its order, DER. Read once, right after the handshake: Node takes the list out
 * of the connection. (getPeerCertificate would rebuild a chain and leave out what does not belong to it, a second leaf say.)
 */
export function presentedChain(socket: TLSSocket): Buffer[] {
  const chain: Buffer[] = [];
  let certificate: X509Certificate | undefined = socket.getPeerX509Certificate();
  while (certificate !== undefined && chain.length < MAX_PRESENTED) {
    chain.push(certificate.raw);
    certificate = certificate.issuerCertificate;
  }
  return chain;
}
