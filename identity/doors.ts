/** The administrator's doors, a unix socket and, where it is set, TLS: the same services behind both, each call judged by who made it. */
import type { ServerInterceptor } from '@grpc/grpc-js';
import type { CertificateAuthority } from '../ca/api.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Logger } from '../src/base/log.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName } from '../src/model/ids.ts';
import type { DownstreamOptions } from './admin/downstream.ts';
import { adminTls } from './admin/mtls.ts';
import type { RoleSource } from './admin/roles.ts';
import type { AdminContext, AdminService } from './admin/service.ts';
import { serveAdminSocket, UNIX_PEER } from './admin/socket.ts';
import type { ServerConfig } from './config.ts';
import type { Nodes } from './nodes.ts';
import type { Signer } from './signer.ts';

export interface DoorsOptions {
  readonly config: ServerConfig;
  readonly ca: CertificateAuthority;
  readonly signer: Signer;
  readonly nodes: Nodes;
  readonly roles: RoleSource;
  readonly interceptors: readonly ServerInterceptor[];
  readonly clock: Clock;
  readonly log: Logger;
  readonly audit: AuditSink;
}

export interface Doors {
  readonly actorOf: AdminContext['actorOf'];
  readonly workloadOf: DownstreamOptions['workloadOf'];
  /** Opens both. @throws CountersignError */
  serve(services: readonly AdminService[], closers: (() => unknown)[]): Promise<void>;
}

export function adminDoors({ config, ca, signer, nodes, roles, interceptors, clock, log, audit }: DoorsOptions): Doors {
  const { listen } = config.admin;
  const { trustDomain } = config;
  const bundle = () => ({ trustDomain, authorities: ca.bundle().authorities });
  const svid = () => signer.svid;
  const isOwnKey = (id: string) =>
    ca.authorities().some((authority) => authority.kind === 'x509' && authority.id === id);
  const isEvicted = (name: NodeName) => nodes.node(name)?.evicted === true;
  const tls =
    listen === undefined
      ? undefined
      : adminTls({ ...listen, ca, isEvicted, roles, bundle, isOwnKey, svid, interceptors, clock, log, audit });
  return {
    // Whoever may open the socket is the administrator.
    actorOf: (peer) =>
      peer === UNIX_PEER ? { name: 'admin', role: 'admin' } : (tls?.actorOf(peer) ?? 'PEER_CHANNEL_CLOSED'),
    // whoever may open the socket is nobody's workload
    workloadOf: (peer) =>
      peer === UNIX_PEER ? 'ISSUE_NOT_DOWNSTREAM' : (tls?.workloadOf(peer) ?? 'PEER_CHANNEL_CLOSED'),
    async serve(services, closers) {
      closers.push(await serveAdminSocket(config.adminSocket, services, interceptors));
      if (tls === undefined) return;
      closers.push(() => tls.close());
      log.info({ address: listen?.address, port: await tls.serve(services) }, 'administration over TLS');
    },
  };
}
