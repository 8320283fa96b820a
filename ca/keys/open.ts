/** The key manager that the configuration names. */
import type { TrustDomain } from '../../src/model/ids.ts';
import { type KeyBlobs, KeyDirectory } from './blobs.ts';
import type { KeyManager } from './key-manager.ts';
import { MemoryKeys } from './memory.ts';
import { Pkcs11Keys } from './pkcs11.ts';
import { Sealer } from './seal.ts';
import { StoredKeys } from './stored-keys.ts';

interface SecretFiles {
  readonly passphraseFile?: string | undefined;
  readonly keyFile?: string | undefined;
}

/** `former`: the secret that keys on disk were encrypted with before. */
export type KeysConfig =
  | { readonly type: 'memory' }
  | ({ readonly type: 'disk'; readonly former?: SecretFiles | undefined } & SecretFiles)
  | {
      readonly type: 'pkcs11';
      readonly module: string;
      readonly token: string;
      readonly pinFile: string;
      readonly former?: SecretFiles | undefined;
    };

export interface KeysPlace {
  readonly trustDomain: TrustDomain;
  /** Of the kind `disk`: made, 0700, if it is not there. */
  readonly directory: string;
  /** Of the kind `disk`: instead of the directory, where servers share a store. */
  readonly blobs?: KeyBlobs | undefined;
}

/** @throws CountersignError naming the field and what to do. */
export function openKeys(config: KeysConfig, place: KeysPlace): KeyManager {
  switch (config.type) {
    case 'memory':
      return new MemoryKeys();
    case 'disk':
      return new StoredKeys(
        place.blobs ?? new KeyDirectory(place.directory),
        sealerOf(config),
        sealerOf(config.former ?? {}),
      );
    case 'pkcs11':
      return Pkcs11Keys.open({ ...config, labelPrefix: `countersign ${place.trustDomain} ` });
  }
}

/** Those on disk from before keys were kept elsewhere. They serve until they are rotated. @throws CountersignError as openKeys. */
export function openFormerKeys(config: KeysConfig, directory: string): KeyManager {
  const former = config.type === 'memory' ? undefined : config.former;
  return new StoredKeys(new KeyDirectory(directory), undefined, sealerOf(former ?? {}));
}

function sealerOf({ passphraseFile, keyFile }: SecretFiles): Sealer | undefined {
  if (passphraseFile !== undefined) return Sealer.fromPassphraseFile(passphraseFile);
  return keyFile === undefined ? undefined : Sealer.fromKeyFile(keyFile);
}
