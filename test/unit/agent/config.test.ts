import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { agentConfigSchema } from '../../../src/agent/config.ts';
import { parseConfig } from '../../../src/base/config-file.ts';

const example = readFileSync(join(import.meta.dirname, '../../../deploy/examples/agent-a.yaml'), 'utf8');
const problemOf = (text: string): string => {
  try {
    parseConfig('agent.yaml', text, agentConfigSchema);
    return '';
  } catch (thrown) {
    return (thrown as Error).message;
  }
};

describe('an agent configuration', () => {
  test('the example is accepted, with the defaults of docs/configuration.md', () => {
    const config = parseConfig('agent.yaml', example, agentConfigSchema);
    expect(config.authentication).toEqual({
      allowUnboundPath: false,
      lease: 30_000,
      maxAuthAge: 3_600_000,
      queueSize: 1024,
      // The one thing of these that the example sets.
      preAuthentication: { enabled: false, rate: 200, channels: 256 },
    });
    expect(config.encryption.enabled).toBe(true);
    expect(config.enforcement).toBe('enforce');
  });

  test.each([
    ['a wildcard as the peer address', ['10.77.0.1:4250', '0.0.0.0:4250'], /peer\.listen\[0\].*wildcard/],
    ['a wildcard in IPv6', ['10.77.0.1:4250', '[::]:4250'], /peer\.listen\[0\].*wildcard/],
    [
      'a node with two lists of addresses to dial',
      [
        'peer:\n',
        'peer:\n  static:\n    - {node: node-b, addresses: ["192.0.2.2:4250"]}\n    - {node: node-b, addresses: ["192.0.2.3:4250"]}\n',
      ],
      /peer\.static\[1\]\.node: node-b is already that of peer\.static\[0\]; list each node once/,
    ],
    [
      'a name as an address to dial',
      ['peer:\n', 'peer:\n  static:\n    - {node: node-b, addresses: ["node-b:4250"]}\n'],
      /peer\.static\[0\]\.addresses\[0\].*not an address with a port/,
    ],
    [
      'an address named twice',
      ['[10.77.1.10, ', '[10.77.1.10, 10.77.1.10, '],
      /agent\.yaml:\d+: endpoints\[0\]\.addresses: names an address twice/,
    ],
    [
      'an address that is none',
      ['10.77.1.10', '10.77.1.300'],
      /endpoints\[0\]\.addresses\[0\].*not an IPv4 or IPv6 address/,
    ],
    [
      'a SPIFFE ID that is none',
      ['spiffe://example.org/frontend\n', 'spiffe://example.org/a//b\n'],
      /endpoints\[0\]\.spiffeId/,
    ],
    ['an unknown field', ['dataDir:', 'colour: red\ndataDir:'], /agent\.yaml:\d+: colour: unknown field/],
    ['the underlay as an endpoint', ['interface: v-frontend\n', 'interface: under0\n'], /is the underlay/],
  ])('refuses %s, naming line and field', (_, [from, to], message) => {
    const text = example.replace(from!, to!);
    expect(text).not.toBe(example);
    expect(problemOf(text)).toMatch(message);
  });

  test('refuses encryption off without the consent that names what it gives up', () => {
    const off = example.replace('encryption:\n', 'encryption:\n  enabled: false\n');
    expect(problemOf(off)).toMatch(/encryption\.enabled.*allowUnboundPath/);
    expect(problemOf(off.replace('authentication:\n', 'authentication:\n  allowUnboundPath: true\n'))).toBe('');
  });
});
