import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  addressFromBytes,
  type Prefix,
  parseAddress,
  parsePrefix,
  prefixContains,
} from '../../../src/model/address.ts';
import { IDENTITY_WORLD } from '../../../src/model/ids.ts';
import { cidrPeerMatches, cidrsOf } from '../../../src/policy/cidr.ts';

const peer = (text: string, ...except: string[]) => ({
  kind: 'cidr' as const,
  prefix: parsePrefix(text)!,
  except: except.map((one) => parsePrefix(one)!),
});
const at = (text: string) => parseAddress(text)!;

describe('prefixes as identities', () => {
  it('give an address the narrowest prefix that holds it, else the world', () => {
    const cidrs = cidrsOf([peer('10.0.0.0/8', '10.1.0.0/16'), peer('10.1.2.0/24'), peer('2001:db8::/32')]);
    const name = (text: string) => {
      const node = cidrs.ofIdentity(cidrs.identityOfAddress(at(text)));
      return node === undefined ? 'world' : node.key;
    };
    expect(name('10.9.9.9')).toBe('10.0.0.0/8');
    expect(name('10.1.9.9')).toBe('10.1.0.0/16');
    expect(name('10.1.2.9')).toBe('10.1.2.0/24');
    expect(name('11.0.0.0')).toBe('world');
    expect(name('2001:db8::1')).toBe('2001:db8::/32');
    expect(name('2001:db9::1')).toBe('world');
  });

  it('leave out what a rule excepts, and what lies inside it', () => {
    const whole = peer('10.0.0.0/8', '10.1.0.0/16');
    const cidrs = cidrsOf([whole, peer('10.1.2.0/24')]);
    const matches = (text: string) => cidrPeerMatches(whole, cidrs.ofIdentity(cidrs.identityOfAddress(at(text)))!);
    expect([matches('10.9.9.9'), matches('10.1.9.9'), matches('10.1.2.3')]).toEqual([true, false, false]);
  });

  it('keep their numbers while others come and go, above those of workloads', () => {
    const before = cidrsOf([peer('192.0.2.0/24')]).identities[0]!.identity;
    cidrsOf([peer('198.51.100.0/24')]);
    const after = cidrsOf([peer('198.51.100.0/24'), peer('192.0.2.0/24')]).identityOfAddress(at('192.0.2.1'));
    expect(after).toBe(before);
    expect(before).toBeGreaterThanOrEqual(1 << 24);
  });

  it('never take an IPv4 address for one of IPv6, although its 16 bytes lie inside', () => {
    const cidrs = cidrsOf([peer('::/0')]);
    expect(cidrs.identityOfAddress(at('192.0.2.1'))).toBe(IDENTITY_WORLD);
    expect(cidrs.identities).toContainEqual({ prefix: parsePrefix('0.0.0.0/0'), identity: IDENTITY_WORLD });
  });

  it('find what asking every prefix finds', () => {
    const prefix = fc
      .tuple(fc.constantFrom(8, 9, 12, 16, 20, 24, 31, 32), fc.nat(255), fc.nat(3))
      .map(([length, a, b]) => {
        const bytes = [10, a, b, a];
        for (let bit = length; bit < 32; bit++) bytes[bit >> 3]! &= ~(0x80 >> (bit & 7));
        return { address: addressFromBytes(Uint8Array.from(bytes)), length } satisfies Prefix;
      });
    fc.assert(
      fc.property(fc.array(prefix, { maxLength: 12 }), fc.nat(255), fc.nat(3), fc.nat(255), (prefixes, a, b, c) => {
        const cidrs = cidrsOf(prefixes.map((one) => ({ kind: 'cidr', prefix: one, except: [] })));
        const address = at(`10.${a}.${b}.${c}`);
        const holding = prefixes.filter((one) => prefixContains(one, address)).map(({ length }) => length);
        const found = cidrs.ofIdentity(cidrs.identityOfAddress(address));
        expect(found?.prefix.length).toBe(holding.length === 0 ? undefined : Math.max(...holding));
      }),
    );
  });
});
