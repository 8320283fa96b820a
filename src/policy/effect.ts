/** What becomes of a packet once policy has spoken, as far as that can be told without asking anybody for proof. */
import type { Outcome } from './compiled.ts';

/** As Outcome, but `deny` also where the authentication that policy asks for can never be met. */
export function effectOf(outcome: Outcome, areWorkloads: boolean): Outcome {
  return unmetBecause(outcome, areWorkloads) === undefined ? outcome : { ...outcome, verdict: 'deny' };
}

/** Why what policy allows is dropped all the same; undefined: it is not. */
export function unmetBecause({ verdict, authType }: Outcome, areWorkloads: boolean): string | undefined {
  if (verdict === 'deny' || authType === 'none') return undefined;
  if (authType === 'test-always-fail') return 'policy asks for an authentication that always fails (a test)';
  return areWorkloads ? undefined : 'policy requires authentication, and only workloads can prove who they are';
}
