/** The accepting side: admission first, then TLS, then a channel. */
import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:tls';
import { Admission } from './admission.ts';
import { Attempt, type AttemptContext, type NodeSelf } from './attempt.ts';
import type { DialAddresses } from './dial-address.ts';
import { tlsCredentials, tlsOptions } from './tls.ts';

export interface ListenAddress {
  readonly address: string;
  readonly port: number;
}

export class Listener {
  readonly #context: AttemptContext;
  readonly #openChannels: () => number;
  readonly #admission: Admission;
  readonly #servers: Server[] = [];
  /** Never listens itself: sockets are handed to it after admission. */
  readonly #tls: TlsServer;
  /** Half-open, by where they come from. */
  readonly #attempts = new Map<string, Attempt>();
  #self: NodeSelf;

  constructor(context: AttemptContext, addresses: DialAddresses, openChannels: () => number) {
    this.#context = context;
    this.#openChannels = openChannels;
    this.#admission = new Admission(context.limits, context.clock, (address) => addresses.isNode(address));
    this.#self = context.self();
    this.#tls = createTlsServer({ ...tlsOptions(context), ...tlsCredentials(this.#self.svid), requestCert: true });
    this.#tls.on('secureConnection', (socket) => {
      const attempt = this.#attempts.get(keyOf(socket));
      if (attempt === undefined) socket.destroy();
      else attempt.secured(socket);
    });
    // A socket that is gone already has no address left; its 'close' tells the attempt.
    this.#tls.on('tlsClientError', (error, socket) => this.#attempts.get(keyOf(socket))?.broken(error));
  }

  async listen(addresses: readonly ListenAddress[]): Promise<void> {
    for (const { address, port } of addresses) {
      const server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
      this.#servers.push(server);
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        // An IPv6 address takes IPv6 alone: the IPv4 side is listed by itself.
        server.listen({ host: address, port, ipv6Only: true }, resolve);
      });
      server.removeAllListeners('error');
      // EMFILE while accepting: the next accept finds room again or not.
      server.on('error', () => {});
    }
  }

  addresses(): ListenAddress[] {
    return this.#servers.flatMap((server) => {
      const address = server.address();
      return address === null || typeof address === 'string' ? [] : [{ address: address.address, port: address.port }];
    });
  }

  async close(): Promise<void> {
    for (const attempt of [...this.#attempts.values()]) attempt.abandon();
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  #accept(socket: Socket): void {
    const { limits, refusals } = this.#context;
    const address = socket.remoteAddress ?? '';
    const remote = { address, port: socket.remotePort ?? 0 };
    const key = keyOf(socket);
    const full = this.#openChannels() + this.#attempts.size >= limits.connections || this.#attempts.has(key);
    const place = full ? undefined : this.#admission.admit(address);
    if (place === undefined) {
      socket.destroy();
      refusals.refused('PEER_TOO_MANY_CONNECTIONS', address, { source: remote });
      return;
    }
    this.#useNewestSvid();
    const done = () => {
      this.#attempts.delete(key);
      place.release();
    };
    this.#attempts.set(key, new Attempt(this.#context, { role: 'server', socket, remote, self: this.#self, done }));
    this.#tls.emit('connection', socket);
  }

  #useNewestSvid(): void {
    const self = this.#context.self();
    if (self.svid !== this.#self.svid) {
      this.#tls.setSecureContext({ ...tlsOptions(this.#context), ...tlsCredentials(self.svid) });
    }
    this.#self = self;
  }
}

function keyOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localPort}`;
}
