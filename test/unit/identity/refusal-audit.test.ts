import { expect, test } from 'vitest';
import { limitRefusals } from '../../../identity/refusal-audit.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';

test('a stranger who is refused in a loop writes a line a second, and how many were left out', () => {
  const events: AuditEvent[] = [];
  let ns = 0n;
  const audit = limitRefusals({ emit: (event) => void events.push(event) }, { bootNs: () => ns });
  const detail = { method: 'ListEntries' };
  const ask = () => audit.emit({ kind: 'admin.refused', reason: 'CERT_CHAIN_EMPTY', detail });
  for (let i = 0; i < 10_000; i++) ask();
  expect(events).toHaveLength(100);
  ns += 900_000_000n;
  ask();
  expect(events).toHaveLength(100);
  ns += 100_000_000n;
  ask();
  expect(events).toHaveLength(101);
  expect(events[100]).toEqual({
    kind: 'admin.refused',
    reason: 'CERT_CHAIN_EMPTY',
    detail: { ...detail, suppressed: 9901 },
  });
  // another reason, or somebody who is known, is another matter; an act is never left out
  audit.emit({ kind: 'node.attest_refused', reason: 'ATTEST_TOKEN_UNKNOWN' });
  for (let i = 0; i < 200; i++) audit.emit({ kind: 'admin.refused', reason: 'ADMIN_ROLE', actor: 'spiffe://a/b' });
  for (let i = 0; i < 200; i++) audit.emit({ kind: 'token.created', actor: 'admin' });
  expect(events).toHaveLength(402);
});
