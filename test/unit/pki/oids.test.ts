import { expect, it } from 'vitest';
import { OID_NODE_BINDING, OID_NODE_INCARNATION } from '../../../src/base/registry/oids.ts';

it('our object identifiers have no number above 2^31 - 1, which Go’s crypto/x509 refuses', () => {
  for (const oid of [OID_NODE_BINDING, OID_NODE_INCARNATION]) {
    for (const number of oid.split('.')) expect(Number(number)).toBeLessThan(2 ** 31);
  }
});
