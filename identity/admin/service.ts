/** What every service of the administrator's API has in common: who calls, whether their role suffices, and how an outcome becomes a gRPC status. */
import {
  type ServerUnaryCall,
  type ServiceDefinition,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { Logger } from '../../src/base/log.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { AuditSink } from '../../src/model/audit-event.ts';
import type { NodeName, SpiffeId } from '../../src/model/ids.ts';
import { Refusal, toServiceError } from '../refusal.ts';

/** Each may do what those before it may. viewer: read; registrar: entries and tokens; admin: everything. */
export const ROLES = ['viewer', 'registrar', 'admin'] as const;
export type Role = (typeof ROLES)[number];

/** Who calls. */
export interface Actor {
  /** For the audit log: "admin" on the unix socket, a SPIFFE ID over mutual TLS. */
  readonly name: string;
  readonly role: Role;
}

/** Who calls over TLS, proven by an SVID that stands now. */
export interface AdminWorkload {
  readonly spiffeId: SpiffeId;
  /** The node that the SVID is bound to. */
  readonly node: NodeName | undefined;
}

export interface AdminService {
  // biome-ignore lint/suspicious/noExplicitAny: services of any shape are served side by side
  readonly definition: ServiceDefinition<any>;
  readonly implementation: UntypedServiceImplementation;
}

export interface AdminContext {
  /** By gRPC's getPeer(): who calls, or why it may not. */
  readonly actorOf: (peer: string) => Actor | ReasonCode;
  readonly log: Logger;
  readonly audit: AuditSink;
}

export type Handler<Request, Response> = (
  call: ServerUnaryCall<Request, Response>,
  done: sendUnaryData<Response>,
) => void;

/** Makes a handler that only callers of this role, or a higher one, reach. A refusal for want of a role is an audit event. */
export function handlers(context: AdminContext) {
  return <Request, Response>(
    role: Role,
    work: (request: Request, actor: Actor) => Promise<Response> | Response,
  ): Handler<Request, Response> =>
    (call, done) => {
      Promise.resolve()
        .then(() => work(call.request, permitted(context, call, role)))
        .then(
          (response) => done(null, response),
          (thrown: unknown) => done(toServiceError(thrown, context.log)),
        );
    };
}

/** @throws Refusal */
export function permitted(
  { actorOf, audit }: AdminContext,
  call: { getPeer(): string; getPath(): string },
  role: Role,
): Actor {
  const actor = actorOf(call.getPeer());
  if (typeof actor === 'string') {
    audit.emit({ kind: 'admin.refused', reason: actor, detail: { method: call.getPath() } });
    throw new Refusal(actor, statusOf(actor));
  }
  if (ROLES.indexOf(actor.role) >= ROLES.indexOf(role)) return actor;
  const detail = { method: call.getPath(), role: actor.role, needs: role };
  audit.emit({ kind: 'admin.refused', reason: 'ADMIN_ROLE', actor: actor.name, detail });
  throw new Refusal(
    'ADMIN_ROLE',
    status.PERMISSION_DENIED,
    `it needs the role ${role}, and ${actor.name} has ${actor.role}`,
  );
}

export function statusOf(reason: ReasonCode): number {
  if (reason === 'PEER_CHANNEL_CLOSED') return status.UNAVAILABLE;
  return reason === 'ADMIN_ROLE' || reason.startsWith('ISSUE_') ? status.PERMISSION_DENIED : status.UNAUTHENTICATED;
}

export function json(value: object): { json: string } {
  return { json: JSON.stringify(value) };
}

export function time(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : new Date(ms).toISOString();
}
