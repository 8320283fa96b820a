/**
 * Several addresses as one gRPC target, tried in order until one takes the connection (gRPC's pick_first). gRPC's own resolvers take
 * several addresses of one family only.
 */
import { experimental } from '@grpc/grpc-js';

const SCHEME = 'countersign';

type Resolver = experimental.Resolver;
type Listener = experimental.ResolverListener;

class ListResolver implements Resolver {
  readonly #addresses: readonly { host: string; port: number }[];
  readonly #listener: Listener;
  #told = false;

  constructor({ path }: { readonly path: string }, listener: Listener) {
    this.#addresses = path.split(',').map((text) => {
      const colon = text.lastIndexOf(':');
      return { host: text.slice(0, colon).replace(/^\[(.*)\]$/, '$1'), port: Number(text.slice(colon + 1)) };
    });
    this.#listener = listener;
  }

  static getDefaultAuthority(): string {
    return SCHEME;
  }

  /** Asked again after each failure. The answer would be the same, and to give it anew would begin the next try at once. */
  updateResolution(): void {
    if (this.#told) return;
    this.#told = true;
    const endpoints = this.#addresses.map((address) => ({ addresses: [address] }));
    process.nextTick(() => this.#listener({ ok: true, value: endpoints }, {}, null, ''));
  }

  destroy(): void {
    this.#told = false;
  }
}

experimental.registerResolver(SCHEME, ListResolver);

/** @param addresses "IP:port" or "[IPv6]:port", at least one */
export function targetOf(addresses: readonly string[]): string {
  return `${SCHEME}:${addresses.join(',')}`;
}
