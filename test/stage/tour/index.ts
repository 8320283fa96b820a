/** The tour, in order. */
import { agentBack } from './agent-back.ts';
import { agentKilled } from './agent-killed.ts';
import { audit } from './audit.ts';
import { authMap } from './auth-map.ts';
import { denied } from './denied.ts';
import { encrypted, encryptedControl } from './encrypted.ts';
import { firstRequest } from './first-request.ts';
import { identities } from './identities.ts';
import { ipReuse } from './ip-reuse.ts';
import { partition } from './partition.ts';
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
  agentKilled,
  agentBack,
  ipReuse,
  partition,
  revoked,
  audit,
];
