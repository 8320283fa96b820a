/** The dialing side: a node's addresses one after the other, until one of them is that node. */
import { connect } from 'node:tls';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';
import { Attempt, type AttemptContext } from './attempt.ts';
import type { Connection } from './connection.ts';
import type { DialAddress, DialAddresses } from './dial-address.ts';
import { secureContextOf, tlsOptions } from './tls.ts';

interface Outcome {
  readonly reason: ReasonCode | undefined;
  readonly proven: boolean;
}

export class Dialer {
  readonly #context: AttemptContext;
  readonly #addresses: DialAddresses;
  readonly #attempts = new Set<Attempt>();
  #abandoned = false;

  constructor(context: AttemptContext, addresses: DialAddresses) {
    this.#context = context;
    this.#addresses = addresses;
  }

  /** undefined: a channel is open, the host was told. A reason: no address led to one; the last one's. */
  async dial(node: NodeInfo, succeeds: Connection | undefined): Promise<ReasonCode | undefined> {
    let last: ReasonCode = 'PEER_UNREACHABLE';
    for (const address of this.#addresses.of(node)) {
      if (this.#abandoned) return 'PEER_SHUTDOWN';
      // The node's own dial was faster than this side's next address.
      if (succeeds === undefined && this.#context.host.has(node)) return 'PEER_REPLACED';
      const { reason, proven } = await this.#try(node, address, succeeds);
      if (reason === undefined) return undefined;
      last = reason;
      // The node itself said no: its other addresses would say the same.
      if (proven) break;
    }
    return last;
  }

  abandon(): void {
    this.#abandoned = true;
    for (const attempt of [...this.#attempts]) attempt.abandon();
  }

  #try(node: NodeInfo, address: DialAddress, succeeds: Connection | undefined): Promise<Outcome> {
    return new Promise((resolve) => {
      const self = this.#context.self();
      const socket = connect({
        host: address.host,
        port: address.port,
        ...tlsOptions(this.#context),
        secureContext: secureContextOf(self.svid, this.#context),
      });
      const attempt = new Attempt(this.#context, {
        role: 'client',
        socket,
        remote: { address: address.host, port: address.port },
        self,
        expected: node,
        succeeds,
        done: (reason, proven) => {
          this.#attempts.delete(attempt);
          resolve({ reason, proven });
        },
      });
      this.#attempts.add(attempt);
      socket.once('connect', () => attempt.connected());
      socket.once('secureConnect', () => attempt.secured(socket));
    });
  }
}
