/**
 * The administrator's door for other machines: the services of the unix socket over TLS 1.3, for SVIDs of this trust domain that
 * have a role. Who calls is judged at each call anew: a revocation, a changed bundle, a role that was taken back counts at once.
 */
import { Server, ServerCredentials, type ServerInterceptor } from '@grpc/grpc-js';
import type { CertificateAuthority } from '../../ca/api.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { NodeName } from '../../src/model/ids.ts';
import { nodeNameOf } from '../../src/model/spiffe-id.ts';
import { Listener, type ListenerOptions } from '../listener.ts';
import type { RoleSource } from './roles.ts';
import type { Actor, AdminService, AdminWorkload } from './service.ts';

const PREFIX = 'admin-tls';
/** Streams open at once on one connection. */
const MAX_STREAMS = 64;
const MAX_MESSAGE_BYTES = 1 << 20;
const LIMITS = { connections: 256, handshakes: 64 };

export interface AdminTlsOptions extends Omit<ListenerOptions, 'accept' | 'limits' | 'field' | 'prefix'> {
  readonly ca: Pick<CertificateAuthority, 'isRevoked'>;
  /** Whether a node of this name was sent away, and has not attested since. */
  readonly isEvicted: (name: NodeName) => boolean;
  readonly roles: RoleSource;
  readonly interceptors: readonly ServerInterceptor[];
}

export interface AdminTls {
  /** Begins to listen. Returns the port. @throws CountersignError unavailable */
  serve(services: readonly AdminService[]): Promise<number>;
  /** Who calls, by gRPC's getPeer(): an actor, or why not. undefined: not a connection of this door. */
  actorOf(peer: string): Actor | ReasonCode | undefined;
  /** As actorOf, whatever its role. */
  workloadOf(peer: string): AdminWorkload | ReasonCode | undefined;
  close(): void;
}

export function adminTls({ ca, isEvicted, roles, interceptors, ...options }: AdminTlsOptions): AdminTls {
  const server = new Server({
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_concurrent_streams': MAX_STREAMS,
    'grpc-node.max_session_memory': 10,
    'grpc.enable_channelz': 0,
    interceptors: [...interceptors],
  });
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = new Listener({
    ...options,
    field: 'admin.listen',
    prefix: PREFIX,
    limits: LIMITS,
    accept: (socket) => injector.injectConnection(socket),
  });
  const workloadOf = (peer: string): AdminWorkload | ReasonCode | undefined => {
    if (!peer.startsWith(`${PREFIX}-`)) return undefined;
    const caller = listener.caller(peer);
    if (caller === undefined) return 'PEER_CHANNEL_CLOSED';
    // 1. An SVID of this trust domain was shown, and it verifies now: the bundle it is judged by is ours alone.
    if (caller.svid === undefined) return caller.refusal ?? 'CERT_CHAIN_EMPTY';
    const { spiffeId, leaf, authorities } = caller.svid;
    // 2. It is not revoked, nor the node it is bound to, nor what signed it.
    const { serial, nodeBinding, notBeforeMs } = leaf;
    if (ca.isRevoked({ spiffeId, serial, node: nodeBinding, notBeforeMs, authorities })) return 'AUTH_REVOKED';
    // 3. The node that it is bound to was not sent away: with it went the word for who runs there.
    const node = nodeBinding === undefined ? undefined : nodeNameOf(nodeBinding);
    if (node !== undefined && isEvicted(node)) return 'ATTEST_NODE_EVICTED';
    return { spiffeId, node };
  };
  return {
    workloadOf,
    serve(services) {
      for (const { definition, implementation } of services) server.addService(definition, implementation);
      return listener.listen();
    },
    actorOf(peer) {
      const workload = workloadOf(peer);
      if (workload === undefined || typeof workload === 'string') return workload;
      // 4. Its SPIFFE ID has a role.
      const { spiffeId } = workload;
      const role = roles.roleOf(spiffeId);
      return role === undefined ? 'ADMIN_ROLE' : { name: spiffeId, role };
    },
    close() {
      listener.close();
      server.forceShutdown();
    },
  };
}
