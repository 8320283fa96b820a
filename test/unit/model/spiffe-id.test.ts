import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import {
  nodeNameOf,
  nodeSpiffeId,
  parseNodeName,
  parseSpiffeId,
  parseTrustDomain,
  pathOf,
  serverSpiffeId,
  spiffeId,
  trustDomainOf,
  trustDomainSpiffeId,
} from '../../../src/model/spiffe-id.ts';

const TD = 'example.org' as TrustDomain;

/** SPIFFE-ID standard, section 2; the cases of go-spiffe's own tests among them. An error is what the sentence must name. */
const vectors: { text: string; expect: { trustDomain: string; path: string } | RegExp }[] = [
  { text: 'spiffe://trustdomain', expect: { trustDomain: 'trustdomain', path: '' } },
  { text: 'spiffe://trustdomain/path', expect: { trustDomain: 'trustdomain', path: '/path' } },
  { text: 'spiffe://trustdomain/path1/path2', expect: { trustDomain: 'trustdomain', path: '/path1/path2' } },
  { text: 'spiffe://a.b-c_d.0/A-Z.a_z/0', expect: { trustDomain: 'a.b-c_d.0', path: '/A-Z.a_z/0' } },
  { text: 'spiffe://trustdomain/pa-_.th', expect: { trustDomain: 'trustdomain', path: '/pa-_.th' } },
  { text: 'spiffe://trustdomain/...', expect: { trustDomain: 'trustdomain', path: '/...' } },
  { text: 'spiffe://trustdomain/.a/..b', expect: { trustDomain: 'trustdomain', path: '/.a/..b' } },
  { text: 'spiffe://1.2.3.4/service', expect: { trustDomain: '1.2.3.4', path: '/service' } },
  { text: `spiffe://${'a'.repeat(255)}/p`, expect: { trustDomain: 'a'.repeat(255), path: '/p' } },
  { text: `spiffe://td/${'p'.repeat(2036)}`, expect: { trustDomain: 'td', path: `/${'p'.repeat(2036)}` } },
  { text: '', expect: /empty/ },
  { text: 'trustdomain/path', expect: /spiffe:\/\// },
  { text: 'Spiffe://trustdomain/path', expect: /lower case/ },
  { text: 'https://trustdomain/path', expect: /spiffe:\/\// },
  { text: 'spiffe:/trustdomain', expect: /spiffe:\/\// },
  { text: 'spiffe://', expect: /trust domain cannot be empty/ },
  { text: 'spiffe:///path', expect: /trust domain cannot be empty/ },
  { text: 'spiffe://TrustDomain/path', expect: /trust domain holds only/ },
  { text: 'spiffe://user@trustdomain/path', expect: /trust domain holds only/ },
  { text: 'spiffe://trustdomain:443/path', expect: /trust domain holds only/ },
  { text: 'spiffe://trust%64omain/path', expect: /trust domain holds only/ },
  { text: 'spiffe://trustdomain?q=1', expect: /trust domain holds only/ },
  { text: 'spiffe://trüst/path', expect: /trust domain holds only/ },
  { text: 'spiffe://[::1]/path', expect: /trust domain holds only/ },
  { text: `spiffe://${'a'.repeat(256)}/p`, expect: /at most 255/ },
  { text: 'spiffe://trustdomain/', expect: /end in a slash/ },
  { text: 'spiffe://trustdomain/path/', expect: /end in a slash/ },
  { text: 'spiffe://trustdomain//path', expect: /empty segment/ },
  { text: 'spiffe://trustdomain/a//b', expect: /empty segment/ },
  { text: 'spiffe://trustdomain/.', expect: /"\." and "\.\."/ },
  { text: 'spiffe://trustdomain/./path', expect: /"\." and "\.\."/ },
  { text: 'spiffe://trustdomain/a/../b', expect: /"\." and "\.\."/ },
  { text: 'spiffe://trustdomain/..', expect: /"\." and "\.\."/ },
  { text: 'spiffe://trustdomain/pa%20th', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/pa th', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/path?query', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/path#fragment', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/path\n', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/pa\0th', expect: /path segment holds only/ },
  { text: 'spiffe://trustdomain/päth', expect: /path segment holds only/ },
  { text: `spiffe://td/${'p'.repeat(2037)}`, expect: /at most 2048/ },
];

describe('parseSpiffeId', () => {
  it.each(vectors)('$text', ({ text, expect: expected }) => {
    const parsed = parseSpiffeId(text);
    if (expected instanceof RegExp) expect(parsed).toEqual({ ok: false, error: expect.stringMatching(expected) });
    else expect(parsed).toEqual({ ok: true, value: { id: text, ...expected } });
  });

  it('takes what the grammar of the standard makes, and takes it apart again', () => {
    const segment = fc.stringMatching(/^[A-Za-z0-9._-]{1,20}$/).filter((text) => text !== '.' && text !== '..');
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z0-9._-]{1,40}$/), fc.array(segment, { maxLength: 6 }), (domain, segments) => {
        const path = segments.map((text) => `/${text}`).join('');
        const id = spiffeId(`spiffe://${domain}${path}`);
        expect([trustDomainOf(id), pathOf(id)]).toEqual([domain, path]);
      }),
    );
  });

  it('agrees with the grammar of the standard on any text', () => {
    const grammar = /^spiffe:\/\/[a-z0-9._-]{1,255}(\/(?!\.{1,2}(\/|$))[A-Za-z0-9._-]+)*$/;
    const character = fc.constantFrom(...'aZ09.-_/%:@?#é \n\0');
    fc.assert(
      fc.property(fc.string({ unit: character, maxLength: 12 }), (text) => {
        const id = `spiffe://${text}`;
        // "$" also matches before a last line feed
        expect(parseSpiffeId(id).ok).toBe(grammar.test(id) && !id.endsWith('\n'));
      }),
      { numRuns: 2000 },
    );
  });

  it('spiffeId throws with the broken rule', () => {
    expect(() => spiffeId('spiffe://a/../b')).toThrow(/"spiffe:\/\/a\/\.\.\/b" is not a SPIFFE ID: .*"\." and "\.\."/);
  });
});

describe('trust domains and node names', () => {
  it('a trust domain is a bare name', () => {
    expect(parseTrustDomain('example.org')).toEqual({ ok: true, value: TD });
    for (const text of ['', 'spiffe://example.org', 'example.org/', 'Example.org', 'a:1', 'a'.repeat(256)]) {
      expect(parseTrustDomain(text).ok).toBe(false);
    }
  });

  it.each(['a', 'node-1', 'node-1.rack-2.example', '0', 'a'.repeat(63)])('the node name %s is taken', (text) => {
    expect(parseNodeName(text)).toEqual({ ok: true, value: text });
  });

  it.each(['', '.', '..', '-a', 'a-', '.a', 'a.', 'A', 'a_b', 'a/b', 'a b', 'a\n', 'a'.repeat(64)])(
    'the node name %j is refused',
    (text) => {
      expect(parseNodeName(text).ok).toBe(false);
    },
  );

  it('the SPIFFE IDs of this project are SPIFFE IDs', () => {
    expect(nodeSpiffeId(TD, 'a' as NodeName)).toBe(spiffeId('spiffe://example.org/node/a'));
    expect(serverSpiffeId(TD)).toBe(spiffeId('spiffe://example.org/countersign/server'));
    expect(trustDomainSpiffeId(TD)).toBe(spiffeId('spiffe://example.org'));
  });

  it('a node name is read from the SPIFFE ID of a node and of nothing else', () => {
    expect(nodeNameOf(spiffeId('spiffe://example.org/node/a.b'))).toBe('a.b');
    for (const path of ['', '/node', '/node/a/b', '/node/A', '/nodes/a', '/x/node/a']) {
      expect(nodeNameOf(spiffeId(`spiffe://example.org${path}`))).toBeUndefined();
    }
  });
});
