/** The tour, in order. */
import { audit } from './audit.ts';
import { authMap } from './auth-map.ts';
import { denied } from './denied.ts';
import { encrypted, encryptedControl } from './encrypted.ts';
import { firstRequest } from './first-request.ts';
import { identities } from './identities.ts';
import { revoked } from './revoked.ts';
import type { Step } from './step.ts';
import { unproven } from './unproven.ts';

export const tour: readonly Step[] = [
  identities,
  firstRequest,
  authMap,
  encrypted,
  encryptedControl,
  denied,
  unproven,
  revoked,
  audit,
];
