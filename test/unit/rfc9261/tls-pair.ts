/** A real TLS 1.3 connection on the loopback device, both ends in hand. */
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { connect, createServer, type TLSSocket } from 'node:tls';
import { type AuthenticatorKeys, deriveAuthenticatorKeys } from '../../../src/auth/rfc9261/keys.ts';
import type { Svid } from '../../../src/model/identity.ts';

export interface TlsPair {
  readonly client: TLSSocket;
  readonly server: TLSSocket;
  readonly clientKeys: AuthenticatorKeys;
  readonly serverKeys: AuthenticatorKeys;
  close(): void;
}

export async function openTlsPair(svid: Svid, ciphers = 'TLS_AES_256_GCM_SHA384'): Promise<TlsPair> {
  const key = svid.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
  const cert = `-----BEGIN CERTIFICATE-----\n${svid.chain[0]!.toString('base64')}\n-----END CERTIFICATE-----\n`;
  const listener = createServer({ key, cert, minVersion: 'TLSv1.3', ciphers });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const accepted = once(listener, 'secureConnection') as Promise<[TLSSocket]>;
  const { port } = listener.address() as AddressInfo;
  const client = connect({ host: '127.0.0.1', port, rejectUnauthorized: false, minVersion: 'TLSv1.3', ciphers });
  await once(client, 'secureConnect');
  const [server] = await accepted;
  return {
    client,
    server,
    clientKeys: keysOf(client, 'client'),
    serverKeys: keysOf(server, 'server'),
    close: () => {
      client.destroy();
      server.destroy();
      listener.close();
    },
  };
}

function keysOf(socket: TLSSocket, role: 'client' | 'server'): AuthenticatorKeys {
  return deriveAuthenticatorKeys({
    role,
    hash: socket.getCipher().name.endsWith('384') ? 'sha384' : 'sha256',
    exportKey: (label, context, length) => socket.exportKeyingMaterial(length, label, Buffer.from(context)),
  });
}
