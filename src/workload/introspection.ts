/** gRPC server reflection (SPIFFE Workload Endpoint, section 7) and health checking: what is served here, and whether it works. */
import { join } from 'node:path';
import type {
  Server,
  ServerDuplexStream,
  ServerUnaryCall,
  ServerWritableStream,
  ServiceDefinition,
  sendUnaryData,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import { service as healthService, protoPath } from 'grpc-health-check';

/** Where the protos lie that the program ships with. */
const PROTOS = join(import.meta.dirname, '../../proto');
const SERVICES = ['', 'SpiffeWorkloadAPI', 'envoy.service.secret.v3.SecretDiscoveryService'];
const NOT_FOUND = 5;

export interface Introspection {
  /** False: the agent knows no identities yet, or is going. */
  serving(serving: boolean): void;
}

interface HealthRequest {
  readonly service: string;
}
interface HealthResponse {
  readonly status: 'SERVING' | 'NOT_SERVING' | 'SERVICE_UNKNOWN';
}
type Watcher = ServerWritableStream<HealthRequest, HealthResponse>;

export function addIntrospection(server: Server): Introspection {
  const files = ['spiffe/workload/workload.proto', 'envoy/service/secret/v3/sds.proto', protoPath];
  addReflection(server, new ReflectionService(loadSync(files, { includeDirs: [PROTOS] })));

  // All services stand and fall together. What a caller names is compared and never kept.
  let response: HealthResponse = { status: 'NOT_SERVING' };
  const watchers = new Set<Watcher>();
  server.addService(healthService, {
    check({ request }: ServerUnaryCall<HealthRequest, HealthResponse>, callback: sendUnaryData<HealthResponse>) {
      if (SERVICES.includes(request.service)) callback(null, response);
      else callback({ code: NOT_FOUND, details: 'no such service is served here' });
    },
    list(_call: unknown, callback: sendUnaryData<{ statuses: Record<string, HealthResponse> }>) {
      callback(null, { statuses: Object.fromEntries(SERVICES.map((name) => [name, response])) });
    },
    watch(call: Watcher) {
      if (!SERVICES.includes(call.request.service)) return void call.write({ status: 'SERVICE_UNKNOWN' });
      watchers.add(call);
      call.once('cancelled', () => watchers.delete(call));
      call.write(response);
    },
  });
  return {
    serving(serving) {
      const status = serving ? 'SERVING' : 'NOT_SERVING';
      if (status === response.status) return;
      response = { status };
      for (const watcher of watchers) watcher.write(response);
    },
  };
}

interface Question {
  readonly fileContainingSymbol?: string;
}
interface Answer {
  readonly listServicesResponse?: { readonly service: readonly { readonly name: string }[] };
}
type ReflectionCall = ServerDuplexStream<Question, Answer>;

/**
 * The library answers whatever it is asked at once: who asks and does not read would have answers pile up here, so the next question
 * waits until the answer before has left. And it writes names of a file without a package, such as SpiffeWorkloadAPI, with a leading
 * dot, which no client expects.
 */
function addReflection(server: Server, reflection: ReflectionService): void {
  const gently = (call: ReflectionCall) => ({
    on(event: string, listener: (message?: Question) => void) {
      if (event !== 'data') return void call.on(event, () => listener());
      call.on('data', (question: Question) => {
        call.pause();
        listener(withoutPackage(question));
      });
    },
    write: (answer: Answer) => call.write(withoutDots(answer), () => call.resume()),
    end: () => call.end(),
  });
  type Handlers = { ServerReflectionInfo(call: unknown): void };
  const addService = (definition: ServiceDefinition, { ServerReflectionInfo }: Handlers) =>
    server.addService(definition, {
      ServerReflectionInfo: (call: ReflectionCall) => ServerReflectionInfo(gently(call)),
    });
  reflection.addToServer({ addService } as unknown as Server);
}

/** What has no package here begins with a capital: services, messages and their members. */
function withoutPackage(question: Question): Question {
  const { fileContainingSymbol: symbol } = question;
  return symbol !== undefined && /^[A-Z]/.test(symbol) ? { ...question, fileContainingSymbol: `.${symbol}` } : question;
}

function withoutDots(answer: Answer): Answer {
  const { listServicesResponse: list } = answer;
  if (list === undefined) return answer;
  const service = list.service.map(({ name }) => ({ name: name.replace(/^\./, '') }));
  return { ...answer, listServicesResponse: { service } };
}
