import { expect, test } from 'vitest';
import { eventLine } from '../../../src/cli/event-line.ts';

const event = {
  time: '2026-11-21T06:28:52.938Z',
  kind: 'packet.dropped',
  verdict: 'drop',
  reason: 'POLICY_DENIED',
  source: { workload: 'frontend', address: '10.77.1.10', port: 40_000 },
  destination: { identity: 2, address: '2001:db8::1', port: 443 },
  policy: 'a.yaml:7 default/a',
  detail: { direction: 'egress', protocol: 'tcp', auth_type: 'none', bytes: 60, also: 41, kernel_boot_ns: '5' },
};
// biome-ignore lint/suspicious/noControlCharactersInRegex: colours, where the test runs on a terminal
const plain = (text: string) => text.replace(/\x1b\[\d+m/g, '');

test('a packet is one line: when, verdict, why, who to whom, by which rule, how many more', () => {
  expect(plain(eventLine(JSON.stringify(event)))).toBe(
    '06:28:52.938 DROP     POLICY_DENIED egress tcp frontend 10.77.1.10:40000 → world [2001:db8::1]:443 60 bytes ' +
      'a.yaml:7 default/a (and 41 more)',
  );
});

test('any other event is its kind and its facts', () => {
  const other = { time: event.time, kind: 'auth.failed', reason: 'AUTH_REVOKED', detail: { role: 'initiator' } };
  expect(plain(eventLine(JSON.stringify(other)))).toBe('06:28:52.938 auth.failed AUTH_REVOKED role=initiator');
  const lost = { time: event.time, kind: 'monitor.lost', detail: { events: 5 } };
  expect(plain(eventLine(JSON.stringify(lost)))).toMatch(/5 events lost/);
});

test('what others named does not move the cursor or break the line', () => {
  const evil = { ...event, policy: 'x\u001b[2J\r\nfake line\u009b31m', source: { workload: 'a\u0007' } };
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  expect(plain(eventLine(JSON.stringify(evil)))).not.toMatch(/[\x00-\x1f\x7f-\x9f]/);
});
