import { type ClientDuplexStream, type ServiceError, status } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Secret } from '../../../proto/gen/envoy/extensions/transport_sockets/tls/v3/secret.ts';
import { SPIFFECertValidatorConfig } from '../../../proto/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.ts';
import type { DiscoveryRequest, DiscoveryResponse } from '../../../proto/gen/envoy/service/discovery/v3/discovery.ts';
import { SecretDiscoveryServiceClient } from '../../../proto/gen/envoy/service/secret/v3/sds.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import {
  answerOf,
  bundle,
  bundleOf,
  clientOf,
  element,
  entry,
  openStage,
  ownUid,
  type Stage,
  svid,
  until,
} from './stage.ts';

const OWN = `unix:uid:${ownUid}`;
const TYPE = 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret';
const foreign = bundleOf('partner.example', 'foreign', generateKey());
const unseen = bundleOf('stranger.example', 'stranger', generateKey());

let stage: Stage;
let client: SecretDiscoveryServiceClient;
beforeEach(async () => {
  stage = await openStage();
  client = clientOf(SecretDiscoveryServiceClient, stage);
  stage.feed.entries = [
    { ...entry('web', OWN), federatesWith: ['partner.example' as TrustDomain] },
    entry('admin', OWN),
    entry('other', `unix:uid:${ownUid + 1}`),
  ];
  for (const { id } of stage.feed.entries) stage.feed.svids.set(id, svid(id));
  stage.feed.bundles = [bundle, foreign, unseen];
});
afterEach(async () => {
  client.close();
  await stage.clear();
});

const envoy = (majorNumber: number, minorNumber: number) => ({
  id: 'a',
  cluster: '',
  userAgentName: 'envoy',
  userAgentVersionType: {
    $case: 'userAgentBuildVersion' as const,
    value: { version: { majorNumber, minorNumber, patch: 0 } },
  },
});

function request(resourceNames: string[], more: Partial<DiscoveryRequest> = {}): DiscoveryRequest {
  const nothing = { versionInfo: '', node: undefined, typeUrl: TYPE, responseNonce: '', errorDetail: undefined };
  return { ...nothing, resourceNames, ...more };
}
function secretsIn({ resources }: DiscoveryResponse): Secret[] {
  return resources.map(({ typeUrl, value }) => {
    expect(typeUrl).toBe(TYPE);
    return Secret.decode(value);
  });
}
const names = (response: DiscoveryResponse) => secretsIn(response).map(({ name }) => name);
const fetch = (resourceNames: string[], more?: Partial<DiscoveryRequest>) =>
  answerOf<DiscoveryResponse>((done) => client.fetchSecrets(request(resourceNames, more), done));
const refusal = (asked: Promise<unknown>) =>
  asked.then(
    () => 'answered',
    ({ code }: ServiceError) => code,
  );
const pem = (text: string) => encodePem('CERTIFICATE', element(text));
const inline = (source: { specifier?: { value: unknown } | undefined } | undefined) => String(source?.specifier?.value);

/** An xDS client that acknowledges by hand. */
function stream() {
  const call: ClientDuplexStream<DiscoveryRequest, DiscoveryResponse> = client.streamSecrets();
  const error = new Promise<ServiceError>((resolve) => call.once('error', resolve));
  const updates = call[Symbol.asyncIterator]();
  const next = async (): Promise<DiscoveryResponse> => (await updates.next()).value;
  return { call, error, next, ask: (asked: DiscoveryRequest) => call.write(asked) };
}
const ackOf = ({ versionInfo, nonce }: DiscoveryResponse) => ({ versionInfo, responseNonce: nonce });

describe('secrets, as Envoy asks for them', () => {
  it('are the first SVID as "default", with its chain and key in PEM', async () => {
    const [secret] = secretsIn(await fetch(['default']));
    expect(secret?.name).toBe('default');
    if (secret?.type?.$case !== 'tlsCertificate') throw new Error('no certificate');
    expect(inline(secret.type.value.certificateChain)).toBe(pem('web 1') + pem('intermediate'));
    expect(inline(secret.type.value.privateKey)).toBe(privateKeyPem(stage.feed.svids.get('web')!.privateKey));
  });

  it('are the own bundle as "ROOTCA": plain, and from Envoy 1.18 on for the own trust domain only', async () => {
    const [plain] = secretsIn(await fetch(['ROOTCA'], { node: envoy(1, 17) }));
    if (plain?.type?.$case !== 'validationContext') throw new Error('no validation context');
    expect(inline(plain.type.value.trustedCa)).toBe(pem('root'));
    const [bound] = secretsIn(await fetch(['ROOTCA'], { node: envoy(1, 18) }));
    expect(validatorOf(bound)).toEqual([['example.org', pem('root')]]);
  });

  it('are all bundles the caller may see as "ALL", each for its own trust domain', async () => {
    const [all] = secretsIn(await fetch(['ALL'], { node: envoy(1, 30) }));
    expect(validatorOf(all)).toEqual([
      ['example.org', pem('root')],
      ['partner.example', pem('foreign')],
    ]);
    expect(await refusal(fetch(['ALL'], { node: envoy(1, 17) }))).toBe(status.INVALID_ARGUMENT);
  });

  it('are named by SPIFFE IDs, and all there is without a name', async () => {
    const ids = ['spiffe://example.org', 'spiffe://partner.example', 'spiffe://example.org/admin'];
    expect(names(await fetch(ids))).toEqual(ids);
    expect(names(await fetch([]))).toEqual([
      'spiffe://example.org',
      'spiffe://partner.example',
      'spiffe://example.org/web',
      'spiffe://example.org/admin',
    ]);
  });

  it.each([
    ['of another user', 'spiffe://example.org/other'],
    ['of a trust domain that no entry of his names', 'spiffe://stranger.example'],
    ['that nothing has', 'nonsense'],
  ])('are refused under a name %s', async (_name, name) => {
    expect(await refusal(fetch(['default', name]))).toBe(status.INVALID_ARGUMENT);
  });

  it('are refused without an identity, of another type, and while there is no SVID', async () => {
    expect(await refusal(fetch([], { typeUrl: 'type.googleapis.com/envoy.config.cluster.v3.Cluster' }))).toBe(
      status.INVALID_ARGUMENT,
    );
    stage.feed.svids.delete('admin');
    expect(await refusal(fetch(['spiffe://example.org/admin']))).toBe(status.UNAVAILABLE);
    stage.feed.entries = [];
    expect(await refusal(fetch(['default']))).toBe(status.PERMISSION_DENIED);
    expect(stage.events.at(-1)).toMatchObject({ kind: 'workload.refused', detail: { method: 'FetchSecrets' } });
  });

  it('are not served as deltas', async () => {
    const call = client.deltaSecrets();
    const error = await new Promise<ServiceError>((resolve) => call.on('error', resolve).resume());
    expect(error.code).toBe(status.UNIMPLEMENTED);
  });
});

describe('a stream of secrets', () => {
  it('is pushed on rotation, under a new version and nonce, and not when nothing changed for it', async () => {
    const { ask, next, call } = stream();
    ask(request(['default']));
    const first = await next();
    ask(request(['default'], ackOf(first)));
    stage.feed.add('somebody', 'unix:uid:1');
    stage.feed.svids.set('web', svid('web', 2));
    stage.feed.changed();
    const second = await next();
    expect(second.versionInfo).not.toBe(first.versionInfo);
    expect(second.nonce).not.toBe(first.nonce);
    const [secret] = secretsIn(second);
    if (secret?.type?.$case !== 'tlsCertificate') throw new Error('no certificate');
    expect(inline(secret.type.value.certificateChain)).toContain(pem('web 2'));
    call.end();
    expect((await call[Symbol.asyncIterator]().next()).done).toBe(true);
  });

  it('may be asked for other names with an acknowledgement or a refusal, and answers these at once', async () => {
    const { ask, next, call } = stream();
    ask(request(['default'], { node: envoy(1, 30) }));
    const first = await next();
    ask(request(['ALL'], ackOf(first)));
    const second = await next();
    expect(names(second)).toEqual(['ALL']);
    // Envoy need not say its version again
    expect(validatorOf(secretsIn(second)[0])).toHaveLength(2);
    const nack = { versionInfo: first.versionInfo, responseNonce: second.nonce };
    ask(request(['ALL'], { ...nack, errorDetail: { code: 13, message: 'no', details: [] } }));
    ask(request(['default', 'ROOTCA'], nack));
    expect(names(await next()).sort()).toEqual(['ROOTCA', 'default']);
    call.cancel();
  });

  it('does not follow what was said of an older answer', async () => {
    const { ask, next, call } = stream();
    ask(request(['default']));
    const first = await next();
    ask(request(['ROOTCA'], ackOf(first)));
    const second = await next();
    ask(request(['default'], ackOf(first)));
    ask(request(['spiffe://example.org'], ackOf(second)));
    expect(names(await next())).toEqual(['spiffe://example.org']);
    call.cancel();
  });

  it('is ended when its client asks in a loop', async () => {
    await stage.clear();
    stage = await openStage({ callRatePerUid: 5 });
    client.close();
    client = clientOf(SecretDiscoveryServiceClient, stage);
    stage.feed.add('web', OWN);
    const { ask, next, error } = stream();
    ask(request(['default']));
    const first = await next();
    for (let i = 0; i < 20; i++) ask(request([i % 2 === 0 ? 'ROOTCA' : 'default'], ackOf(first)));
    expect((await error).code).toBe(status.RESOURCE_EXHAUSTED);
    await until(() => stage.api.load.streams === 0 && stage.api.load.calls === 0);
  });

  it('ends when the identity is taken away, and leaves nothing behind', async () => {
    const { ask, next, error } = stream();
    ask(request(['default']));
    await next();
    stage.feed.entries = [];
    stage.feed.changed();
    // the iterator ends by the same error
    await expect(next()).rejects.toMatchObject({ code: status.PERMISSION_DENIED });
    expect((await error).code).toBe(status.PERMISSION_DENIED);
    expect(stage.api.load).toMatchObject({ streams: 0, calls: 0 });
  });
});

function validatorOf(secret: Secret | undefined): [string, string][] {
  if (secret?.type?.$case !== 'validationContext') throw new Error('no validation context');
  const { trustedCa, customValidatorConfig } = secret.type.value;
  expect(trustedCa).toBeUndefined();
  expect(customValidatorConfig?.name).toBe('envoy.tls.cert_validator.spiffe');
  expect(customValidatorConfig?.typedConfig?.typeUrl).toMatch(/\.SPIFFECertValidatorConfig$/);
  const { trustDomains } = SPIFFECertValidatorConfig.decode(customValidatorConfig!.typedConfig!.value);
  return trustDomains.map(({ name, trustBundle }) => [name, inline(trustBundle)]);
}
