import { describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { serverConfigSchema } from '../../../identity/config.ts';
import { parseConfig } from '../../../src/base/config-file.ts';

function read(ca: object) {
  const config = {
    apiVersion: 'countersign.dev/v1alpha1',
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: '/var/lib/countersign',
    listen: { address: '127.0.0.1' },
    audit: { dir: '/var/log/countersign' },
    ca,
  };
  return parseConfig('server.yaml', stringify(config), serverConfigSchema).ca;
}

const vault = (changes: object) => ({
  upstream: {
    type: 'vault',
    address: 'https://vault.example.org:8200',
    auth: { type: 'token', tokenFile: '/t' },
    ...changes,
  },
});

describe('the settings of the authority', () => {
  it('are P-256 keys in plain files and a root of its own, if nothing is said', () => {
    expect(read({})).toMatchObject({ keyType: 'ec-p256', keys: { type: 'disk' } });
    expect(read({}).upstream).toBeUndefined();
  });

  it('take defaults for Vault', () => {
    expect(read(vault({})).upstream).toMatchObject({ mount: 'pki', timeoutSeconds: 10 });
    expect(read(vault({ auth: { type: 'kubernetes', role: 'r' } })).upstream).toMatchObject({
      auth: { mount: 'kubernetes', tokenFile: '/var/run/secrets/kubernetes.io/serviceaccount/token' },
    });
  });

  const pkcs11 = { type: 'pkcs11', module: '/m.so', token: 'ca' };
  it.each<[string, object, RegExp]>([
    ['a key type that there is not', { keyType: 'ed25519' }, /ca\.keyType/],
    ['two secrets', { keys: { type: 'disk', passphraseFile: '/a', keyFile: '/b' } }, /ca\.keys: .*give one/],
    ['a former secret alone', { keys: { type: 'disk', former: { keyFile: '/b' } } }, /ca\.keys: .*no present one/],
    ['a kind of place that there is not', { keys: { type: 'aws-kms' } }, /ca\.keys/],
    ['a token without a PIN', { keys: pkcs11 }, /ca\.keys\.pinFile/],
    ['a PIN in the settings', { keys: { ...pkcs11, pinFile: '/p', pin: '1234' } }, /pin/],
    [
      'cert-manager',
      { upstream: { type: 'cert-manager', issuerName: 'x' } },
      /ca\.upstream: cert-manager is asked through Kubernetes, which is not there yet; use disk, vault or countersign/,
    ],
    [
      'Vault without TLS',
      vault({ address: 'http://127.0.0.1:8200' }),
      /ca\.upstream\.address: must be https:\/\/HOST:PORT/,
    ],
    ['a path in Vault’s address', vault({ address: 'https://v/v1/' }), /ca\.upstream\.address/],
    ['a secret in Vault’s address', vault({ address: 'https://u:p@v' }), /ca\.upstream\.address/],
    ['a mount that leads elsewhere', vault({ mount: 'pki/../sys' }), /ca\.upstream\.mount/],
    ['an issuer that leads elsewhere', vault({ issuer: 'a?b' }), /ca\.upstream\.issuer/],
    ['a token in the settings', vault({ auth: { type: 'token', token: 'hvs.x' } }), /tokenFile/],
    ['a namespace with a line break', vault({ namespace: 'a\r\nX-Evil: 1' }), /ca\.upstream\.namespace/],
    ['an upstream without a key', { upstream: { type: 'disk', certFile: '/c' } }, /ca\.upstream\.keyFile/],
  ])('are refused with %s', (_, ca, message) => {
    expect(() => read(ca)).toThrow(message);
  });
});
