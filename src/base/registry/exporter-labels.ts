/** Every label with which secrets are drawn from a peer channel's TLS exporter (RFC 8446, section 7.5). Distinct by construction. */
export const EXPORTER_LABELS = {
  // RFC 9261, section 5.1
  authenticatorClientHandshake: 'EXPORTER-client authenticator handshake context',
  authenticatorServerHandshake: 'EXPORTER-server authenticator handshake context',
  authenticatorClientFinished: 'EXPORTER-client authenticator finished key',
  authenticatorServerFinished: 'EXPORTER-server authenticator finished key',
  channelSuccession: 'EXPORTER-countersign-succession',
  wireguardPresharedKey: 'EXPORTER-countersign-wireguard-psk',
} as const;
