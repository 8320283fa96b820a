/** A restore where servers share etcd: what is there goes, and the first server to start gives etcd the restored state. */
import { CountersignError } from '../../src/base/errors.ts';
import { EtcdStore } from './client.ts';
import type { EtcdConfig } from './config.ts';
import { LEADER, SNAPSHOT } from './layout.ts';

/** Below the prefix: keys are printable. */
const ALL = ['', '\u007f'] as const;

/**
 * @param force also where etcd holds a state
 * @returns what deletes it
 * @throws CountersignError unavailable: a server serves, or etcd cannot be reached; already-exists
 */
export async function refuseShared(config: EtcdConfig, force: boolean): Promise<() => Promise<void>> {
  const etcd = new EtcdStore(config);
  try {
    if ((await etcd.get(LEADER)) !== undefined) {
      throw new CountersignError('unavailable', 'a server serves from etcd; stop all servers that share it first');
    }
    if ((await etcd.get(SNAPSHOT)) !== undefined && !force) {
      const message = `etcd holds a server's state below ${config.prefix} already; to put the backup in its place use --force, which deletes it`;
      throw new CountersignError('already-exists', message);
    }
  } finally {
    etcd.close();
  }
  return async () => {
    const store = new EtcdStore(config);
    try {
      const gone = await store.change([[LEADER, 'Version', 0]], [{ deleteRange: ALL }]);
      if (gone === undefined) throw new CountersignError('unavailable', 'a server began to serve; stop it first');
    } finally {
      store.close();
    }
  };
}
