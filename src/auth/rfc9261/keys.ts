/** The four secrets both ends draw from the TLS exporter, once for each channel (RFC 9261, section 5.1). */
import { EXPORTER_LABELS } from '../../base/registry/exporter-labels.ts';
import type { ChannelRole, PeerChannel } from '../../channel/peer-channel.ts';
import { type AuthenticatorHash, FinishedKey, HASH_LENGTH } from './finished-key.ts';

export interface SenderKeys {
  /** Handshake Context: public to both ends, unknown to everyone else. */
  readonly handshakeContext: Buffer;
  /** Finished MAC Key. */
  readonly finishedKey: FinishedKey;
}

/** Belongs to one channel and dies with it. */
export interface AuthenticatorKeys {
  /** This side's TLS role. */
  readonly role: ChannelRole;
  readonly hash: AuthenticatorHash;
  /** For authenticators this side makes. */
  readonly own: SenderKeys;
  /** For authenticators the peer makes. */
  readonly peer: SenderKeys;
}

/**
 * Labels follow the TLS role of the authenticator's sender; the context is empty and the length that of the hash
 * (RFC 9261, section 5.1). @throws when the channel is closed.
 */
export function deriveAuthenticatorKeys(channel: Pick<PeerChannel, 'exportKey' | 'hash' | 'role'>): AuthenticatorKeys {
  const length = HASH_LENGTH[channel.hash];
  const none = Buffer.alloc(0);
  const draw = (label: string) => channel.exportKey(label, none, length);
  const client: SenderKeys = {
    handshakeContext: draw(EXPORTER_LABELS.authenticatorClientHandshake),
    finishedKey: new FinishedKey(channel.hash, draw(EXPORTER_LABELS.authenticatorClientFinished)),
  };
  const server: SenderKeys = {
    handshakeContext: draw(EXPORTER_LABELS.authenticatorServerHandshake),
    finishedKey: new FinishedKey(channel.hash, draw(EXPORTER_LABELS.authenticatorServerFinished)),
  };
  const { role, hash } = channel;
  return role === 'client' ? { role, hash, own: client, peer: server } : { role, hash, own: server, peer: client };
}
