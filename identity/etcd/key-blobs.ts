/** The authority's private keys where all servers find them: sealed with a passphrase or key file that each of them has, and etcd has not. */

import type { KeyBlobs } from '../../ca/api.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { Change, Condition, EtcdStore } from './client.ts';
import { KEYS } from './layout.ts';

/** @param leads holds while this server leads: no other changes keys */
export function etcdKeyBlobs(etcd: EtcdStore, leads: Condition): KeyBlobs {
  const change = async (conditions: readonly Condition[], changes: readonly Change[]) => {
    if ((await etcd.change([leads, ...conditions], changes)) !== undefined) return true;
    if ((await etcd.change([leads], [])) !== undefined) return false;
    throw new CountersignError('unavailable', 'this server does not lead any more; nothing was changed');
  };
  const key = (id: string) => `${KEYS}${id}`;
  return {
    replicated: true,
    describe: (id) => `etcd ${etcd.prefix}${key(id)}`,
    get: (id) => etcd.get(key(id)),
    create: (id, blob) => change([[key(id), 'Version', 0]], [{ put: key(id), value: blob }]),
    replace: async (id, blob) => {
      await change([], [{ put: key(id), value: blob }]);
    },
    delete: async (id) => {
      await change([], [{ delete: key(id) }]);
    },
    list: async () => {
      const found = await etcd.range(KEYS, `${KEYS.slice(0, -1)}0`, 0);
      return found.map(([name]) => name.slice(KEYS.length)).sort();
    },
  };
}
