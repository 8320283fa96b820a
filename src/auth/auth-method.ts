/** One way to prove a pair of identities. Which one serves a key follows from its type and from where the other side lives. */
import { err } from '../base/errors.ts';
import type { AuthKey, AuthType } from '../model/datapath.ts';
import type { Outcome } from './exchange-host.ts';

export interface AuthMethod {
  readonly type: Exclude<AuthType, 'none'>;
  /** Proves both sides and writes the kernel's entries of this node, or says why not. Never rejects. */
  prove(key: AuthKey): Promise<Outcome>;
}

/** For trying out what policy does: never proven. */
export const alwaysFail: AuthMethod = {
  type: 'test-always-fail',
  prove: () => Promise.resolve(err('AUTH_ALWAYS_FAIL')),
};
