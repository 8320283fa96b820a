/** Keys in a real token: SoftHSM, which is a token in files. */
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import { KEY_TYPES, type KeyType } from '../../../ca/keys/key-type.ts';
import { type KeysConfig, openKeys } from '../../../ca/keys/open.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { verifySignature } from '../../../src/pki/algorithms.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { challenge, expectSigns } from './signs.ts';
import { SoftHsm } from './soft-hsm.ts';
import { START, TD } from './support.ts';

let hsm: SoftHsm;
let opened: { close(): void }[];
beforeEach(() => {
  hsm = new SoftHsm();
  opened = [];
});
afterEach(() => {
  for (const one of opened) one.close();
  hsm.remove();
});

function open(changes: Partial<Extract<KeysConfig, { type: 'pkcs11' }>> = {}, trustDomain: TrustDomain = TD) {
  const keys = openKeys({ ...hsm.config, ...changes }, { trustDomain, directory: join(hsm.home, 'unused') });
  opened.push(keys);
  return keys;
}

/** What a program says that is logged in and asks for the private value, and to be allowed to. */
function readRaw(label: string): string[] {
  const p11 = createRequire(import.meta.url)('pkcs11js') as typeof import('pkcs11js');
  const library = new p11.PKCS11();
  library.load(SoftHsm.module);
  library.C_Initialize();
  try {
    const slot = library.C_GetSlotList(true)[0]!;
    const session = library.C_OpenSession(slot, p11.CKF_SERIAL_SESSION | p11.CKF_RW_SESSION);
    library.C_Login(session, p11.CKU_USER, SoftHsm.pin);
    library.C_FindObjectsInit(session, [
      { type: p11.CKA_CLASS, value: p11.CKO_PRIVATE_KEY },
      { type: p11.CKA_LABEL, value: label },
    ]);
    const [key] = library.C_FindObjects(session, 1);
    library.C_FindObjectsFinal(session);
    const attempts = [
      () => library.C_GetAttributeValue(session, key!, [{ type: p11.CKA_VALUE }]),
      () => library.C_SetAttributeValue(session, key!, [{ type: p11.CKA_EXTRACTABLE, value: true }]),
    ];
    return attempts.map((attempt) => {
      try {
        attempt();
        return 'allowed';
      } catch (thrown) {
        return (thrown as Error).message.match(/CKR_[A-Z_]+/)?.[0] ?? String(thrown);
      }
    });
  } finally {
    library.C_Finalize();
  }
}

describe('keys in a PKCS#11 token', () => {
  it.each<KeyType>(KEY_TYPES)('of type %s sign as X.509 and JWS want it, also after a restart', async (type) => {
    const keys = open();
    const key = await keys.generate('x509-1', type);
    expect(key).toMatchObject({ id: 'x509-1', type });
    expectSigns(key);
    keys.close();
    const again = await open().load('x509-1');
    expect(again?.publicKey).toEqual(key.publicKey);
    expectSigns(again!);
  });

  it('make authorities whose certificates verify', async () => {
    const key = await open().generate('x509-1', 'ec-p384');
    const { certificate } = await makeAuthority(key, TD, { notBeforeMs: START, notAfterMs: START + 3_600_000 });
    const { signatureAlgorithm, keyKind, publicKey, tbs, signature } = certificate;
    expect(signatureAlgorithm).toBe('ecdsaSha384');
    expect(verifySignature(signatureAlgorithm!, keyKind!, publicKey, tbs, signature)).toBe(true);
  });

  it('never leave it: nobody with the PIN can read one or make it readable, and no file outside holds any of it', async () => {
    const keys = open();
    await keys.generate('x509-1', 'ec-p256');
    keys.close();
    const listed = hsm.tool('--list-objects', '--type', 'privkey');
    expect(listed).toMatch(/label: +countersign example\.org x509-1/);
    expect(listed).toMatch(/Access: +sensitive, always sensitive, never extractable, local/);
    expect(listed).toMatch(/Usage: +sign *\n/);
    expect(readRaw('countersign example.org x509-1')).toEqual(['CKR_ATTRIBUTE_SENSITIVE', 'CKR_ATTRIBUTE_READ_ONLY']);
    expect(existsSync(join(hsm.home, 'unused'))).toBe(false);
  });

  it('are listed by trust domain, made once, and gone when removed', async () => {
    const keys = open();
    await keys.generate('b', 'ec-p256');
    await keys.generate('a', 'ec-p256');
    await expect(keys.generate('a', 'ec-p256')).rejects.toThrow(/there is a key a already/);
    expect(await keys.list()).toEqual(['a', 'b']);
    await keys.remove('a');
    await keys.remove('a');
    expect(await keys.list()).toEqual(['b']);
    expect(await keys.load('a')).toBeUndefined();
    keys.close();
    const other = open({}, 'other.org' as TrustDomain);
    expect(await other.list()).toEqual([]);
    expect(await other.load('b')).toBeUndefined();
  });

  it('are not taken in from outside', async () => {
    await expect(open().adopt('a', generateKey())).rejects.toThrow(/made outside of the token and is not taken in/);
  });

  it('are refused if they were imported or may leave it', async () => {
    writeFileSync(join(hsm.home, 'planted.pem'), privateKeyPem(generateKey()), { mode: 0o600 });
    const named = ['--label', 'countersign example.org a', '--token', 'ca', '--pin', SoftHsm.pin];
    execFileSync('softhsm2-util', ['--import', join(hsm.home, 'planted.pem'), '--id', '0a', ...named]);
    await expect(open().load('a')).rejects.toThrow(/the key a was not made in the token or may leave it/);
  });

  it('are refused if the public half is another key’s', async () => {
    const keys = open();
    await keys.generate('a', 'ec-p256');
    keys.close();
    const label = 'countersign example.org a';
    hsm.tool('--delete-object', '--type', 'pubkey', '--label', label);
    execFileSync('openssl', ['ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', join(hsm.home, 'k.pem')]);
    execFileSync(
      'openssl',
      ['ec', '-in', join(hsm.home, 'k.pem'), '-pubout', '-outform', 'DER', '-out', join(hsm.home, 'pub')],
      {
        stdio: 'ignore',
      },
    );
    hsm.tool('--write-object', join(hsm.home, 'pub'), '--type', 'pubkey', '--label', label);
    await expect(open().load('a')).rejects.toThrow(/do not belong together; remove both/);
  });
});

describe('a token that cannot be opened', () => {
  it.each<[string, () => Parameters<typeof open>[0], RegExp]>([
    [
      'is not there',
      () => ({ token: 'vault' }),
      /ca\.keys\.token: no token is labelled "vault"; there are "ca": plug it in or correct/,
    ],
    [
      'has a module that is missing',
      () => ({ module: '/nonexistent.so' }),
      /ca\.keys\.module: \/nonexistent\.so cannot be used/,
    ],
    ['has a module that is none', () => ({ module: '/bin/true' }), /ca\.keys\.module: \/bin\/true cannot be used/],
    [
      'has a PIN that others may read',
      () => {
        chmodSync(hsm.pinFile, 0o644);
        return {};
      },
      /pin: group or others may read it; run chmod 600/,
    ],
    [
      'has an empty PIN',
      () => {
        writeFileSync(hsm.pinFile, '\n');
        return {};
      },
      /ca\.keys\.pinFile: the first line of .* is empty/,
    ],
    [
      'shares its label with another',
      () => {
        hsm.initToken('ca');
        return {};
      },
      /2 tokens are labelled "ca"; give each a label/,
    ],
  ])('because it %s is refused with what to do', (_, spoil, message) => {
    expect(() => open(spoil())).toThrow(message);
  });

  it('because the PIN is wrong says so, without the PIN, and tries no second time', async () => {
    writeFileSync(hsm.pinFile, '11112222\n', { mode: 0o600 });
    let message = '';
    try {
      open();
    } catch (thrown) {
      message = (thrown as Error).message;
    }
    expect(message).toMatch(/ca\.keys\.pinFile: PKCS#11 token "ca" refuses the PIN/);
    expect(message).not.toMatch(/11112222|87654321/);
  });
});

describe('a token that goes away while the authority runs', () => {
  it('lets nothing be signed, says so, and is used again when it is back', async () => {
    const keys = open();
    const key = await keys.generate('a', 'ec-p256');
    const other = await keys.generate('b', 'ec-p256');
    const plugIn = hsm.unplug();

    expect(() => key.sign(challenge('x'))).toThrow(/PKCS#11 token "ca": could not sign \(CKR_[A-Z_]+\)/);
    expect(() => key.signJws(Buffer.from('x'))).toThrow(/PKCS#11 token "ca"/);
    await expect(keys.load('a').then((found) => found?.sign(challenge('x')))).resolves.toBeUndefined();
    await untilReopened(() =>
      expect(() => key.sign(challenge('x'))).toThrow(/no token is labelled "ca"; there is none/),
    );

    plugIn();
    await untilReopened(() => expectSigns(key));
    // each is found anew: the numbers that tokens give objects are given again
    expectSigns(other);
    expectSigns(key);
  });

  it('and comes back with another key under the same name signs nothing', async () => {
    const keys = open();
    const key = await keys.generate('a', 'ec-p256');
    hsm.unplug();
    hsm.initToken('ca');
    hsm.tool('--keypairgen', '--key-type', 'EC:prime256v1', '--label', 'countersign example.org a', '--usage-sign');
    await untilReopened(() =>
      expect(() => key.sign(challenge('x'))).toThrow(/the key a is not in it any more; restore the token/),
    );
    expect(() => key.sign(challenge('x'))).toThrow();
  });

  it('and whose PIN is wrong then is not tried again, so that it does not lock', async () => {
    const key = await open().generate('a', 'ec-p256');
    const plugIn = hsm.unplug();
    expect(() => key.sign(challenge('x'))).toThrow();
    plugIn();
    writeFileSync(hsm.pinFile, '11112222\n');
    await untilReopened(() => expect(() => key.sign(challenge('x'))).toThrow(/refuses the PIN/));
    // it is not even read again
    rmSync(hsm.pinFile);
    await new Promise((resolve) => setTimeout(resolve, 1100));
    expect(() => key.sign(challenge('x'))).toThrow(/refuses the PIN.*not tried twice/);
  });

  it('signs nothing once the authority has closed it', async () => {
    const keys = open();
    const key = await keys.generate('a', 'ec-p256');
    keys.close();
    expect(() => key.sign(challenge('x'))).toThrow(/it is closed/);
  });
});

/** A token is opened again at most once a second. */
async function untilReopened(check: () => void): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      check();
      return;
    } catch (thrown) {
      if (tries > 40) throw thrown;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
