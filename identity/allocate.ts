/** Numbers for label sets: one security identity for each (SPIFFE ID, label set), for ever. */
import { CountersignError } from '../src/base/errors.ts';
import type { Labels } from '../src/model/identity.ts';
import { type SecurityIdentity, type SpiffeId, securityIdentity } from '../src/model/ids.ts';
import type { Store } from './store.ts';

const FIRST = 256;
const LAST = 65_535;

/**
 * The identity of this pair: the same after every restart, and never another pair's, even after its entries are gone: a
 * kernel map somewhere may still hold the number. Call it inside a transaction. @throws CountersignError exhausted
 */
export function allocateIdentity(store: Store, spiffeId: SpiffeId, labels: Labels): SecurityIdentity {
  const known = store.identityOf(spiffeId, labels);
  if (known !== undefined) return securityIdentity(known);
  const identity = store.next('identity', FIRST);
  if (identity > LAST) {
    throw new CountersignError(
      'exhausted',
      `all security identities up to ${LAST} have been used; none is given twice`,
    );
  }
  store.addIdentity({ identity, spiffeId, labels });
  return securityIdentity(identity);
}
