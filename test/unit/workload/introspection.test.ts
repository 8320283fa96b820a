import { join } from 'node:path';
import { credentials, loadPackageDefinition, type ServiceError, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { protoPath } from 'grpc-health-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SpiffeWorkloadAPIClient } from '../../../proto/gen/spiffe/workload/workload.ts';
import { answerOf, clientOf, openStage, ownUid, type Stage, until } from './stage.ts';

const reflectionProto = join(
  import.meta.dirname,
  '../../../node_modules/@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto',
);
// biome-ignore lint/suspicious/noExplicitAny: clients made from protos at run time, as any tool does
const grpc = loadPackageDefinition(loadSync([reflectionProto, protoPath], { defaults: true, enums: String })) as any;

let stage: Stage;
const clients: { close(): void }[] = [];
beforeEach(async () => {
  stage = await openStage({ introspectionsPerUid: 2 });
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await stage.clear();
});

function clientFor(service: string) {
  const Service = service.split('.').reduce((found, part) => found[part], grpc);
  const client = new Service(`unix:${stage.socketPath}`, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
  });
  clients.push(client);
  return client;
}

describe('reflection on the socket', () => {
  const ask = async (request: object) => {
    const call = clientFor('grpc.reflection.v1.ServerReflection').serverReflectionInfo();
    call.write(request);
    const { value } = await call[Symbol.asyncIterator]().next();
    call.cancel();
    return value;
  };

  it('says which services there are, without the security header', async () => {
    const { listServicesResponse } = await ask({ listServices: '' });
    const names = listServicesResponse.service.map(({ name }: { name: string }) => name);
    expect(names).toEqual(
      expect.arrayContaining([
        'SpiffeWorkloadAPI',
        'envoy.service.secret.v3.SecretDiscoveryService',
        'grpc.health.v1.Health',
      ]),
    );
    expect(names.filter((name: string) => name.startsWith('.'))).toEqual([]);
  });

  it.each(['SpiffeWorkloadAPI', 'envoy.service.secret.v3.SecretDiscoveryService.StreamSecrets'])(
    'describes %s',
    async (symbol) => {
      const { fileDescriptorResponse } = await ask({ fileContainingSymbol: symbol });
      expect(fileDescriptorResponse.fileDescriptorProto.length).toBeGreaterThan(0);
      expect(String(fileDescriptorResponse.fileDescriptorProto[0])).toContain(symbol.split('.').at(-1));
    },
  );

  it('answers one question after the other, so that nothing piles up for who does not read', async () => {
    const call = clientFor('grpc.reflection.v1.ServerReflection').serverReflectionInfo();
    for (let i = 0; i < 50; i++) call.write({ listServices: '' });
    call.end();
    let answers = 0;
    for await (const _answer of call) answers++;
    expect(answers).toBe(50);
  });
});

describe('health on the socket', () => {
  const check = (service: string) =>
    answerOf<{ status: string }>((done) => clientFor('grpc.health.v1.Health').check({ service }, done));

  it('follows whether the agent knows its identities', async () => {
    stage.feed.starting = true;
    stage.feed.changed();
    expect(await check('')).toEqual({ status: 'NOT_SERVING' });
    stage.feed.starting = false;
    stage.feed.changed();
    expect(await check('SpiffeWorkloadAPI')).toEqual({ status: 'SERVING' });
    const watch = clientFor('grpc.health.v1.Health').watch({ service: 'SpiffeWorkloadAPI' });
    watch.on('error', () => {});
    const updates = watch[Symbol.asyncIterator]();
    expect((await updates.next()).value).toEqual({ status: 'SERVING' });
    stage.feed.starting = true;
    stage.feed.changed();
    expect((await updates.next()).value).toEqual({ status: 'NOT_SERVING' });
  });

  it('says nothing about workloads', async () => {
    stage.feed.add('web', `unix:uid:${ownUid}`);
    await expect(check('spiffe://example.org/web')).rejects.toMatchObject({ code: status.NOT_FOUND });
    expect(stage.events).toEqual([]);
  });

  it('has a limit of its own: who fills it has the Workload API still', async () => {
    const watches = [1, 2, 3].map(() => clientFor('grpc.health.v1.Health').watch({ service: '' }));
    const ends = watches.map((watch) => new Promise<ServiceError>((resolve) => watch.on('error', resolve).resume()));
    expect((await Promise.race(ends)).code).toBe(status.RESOURCE_EXHAUSTED);
    await until(() => stage.api.load.calls === 2);
    const client = clientOf(SpiffeWorkloadAPIClient, stage);
    clients.push(client);
    const header = await answerOf((done) => client.validateJwtsvid({ audience: '', svid: '' }, done)).catch(
      ({ code }: ServiceError) => code,
    );
    expect(header).toBe(status.INVALID_ARGUMENT);
  });
});
