/** SPIFFE IDs against the standard written as one regular expression. */
import { parseSpiffeId } from '../../../src/model/spiffe-id.ts';
import type { Random } from '../random.ts';
import { damageText } from './mutate.ts';
import { hold, type Target } from './target.ts';

/** SPIFFE-ID, sections 2.1 to 2.3: its alphabets, no empty segment, and none of dots that RFC 3986 would take away. */
const STANDARD = /^spiffe:\/\/[a-z0-9._-]{1,255}(\/(?!\.{1,2}(\/|$))[A-Za-z0-9._-]+)*$/;
const MAX_BYTES = 2048;
const MAX_MESSAGE = 300;

const PIECES = [
  'spiffe://',
  'SPIFFE://',
  'spiffe:/',
  '/',
  '//',
  '.',
  '..',
  '/.',
  '/..',
  '/../',
  '%',
  '%2f',
  '%2e',
  ':',
  ':8443',
  '@',
  'user@',
  '?',
  '?a=b',
  '#',
  '#f',
  '\\',
  'A',
  'Z',
  'a',
  'z',
  '0',
  '-',
  '_',
  ' ',
  '\t',
  '\n',
  '\0',
  'é',
  '\u212a',
  '\u0131',
  'ａ',
  '\ud800',
  '😀',
  '~',
  '*',
  '[::1]',
  'xn--',
  ...'example.org/ns/sa'.split('/'),
];
const SAMPLES = [
  'spiffe://example.org/ns/shop/sa/frontend',
  'spiffe://example.org',
  'spiffe://a/b',
  `spiffe://${'t'.repeat(255)}/p`,
  `spiffe://example.org/${'s'.repeat(2027)}`,
  `spiffe://example.org${'/x'.repeat(1014)}`,
];

export const spiffeIds: Target = {
  name: 'spiffe-id',
  make: (random: Random) =>
    random.oneIn(6)
      ? Array.from({ length: random.below(12) }, () => random.pick(PIECES)).join('')
      : damageText(random, random.pick(SAMPLES), PIECES),
  check(input) {
    const text = input as string;
    const parsed = parseSpiffeId(text);
    hold(
      'accepted when the standard says so, and only then',
      parsed.ok === (STANDARD.test(text) && text.length <= MAX_BYTES),
    );
    if (!parsed.ok) {
      hold('the refusal is one short line', parsed.error.length <= MAX_MESSAGE && !/[\r\n]/.test(parsed.error));
      return false;
    }
    const { id, trustDomain, path } = parsed.value;
    hold('an ID is its trust domain and its path', id === text && `spiffe://${trustDomain}${path}` === text);
    return true;
  },
};
