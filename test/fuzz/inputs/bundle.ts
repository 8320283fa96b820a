/** SPIFFE bundle documents, which are JWK sets: what is taken can be published again and read as the same. */
import { encodeJwks, encodeJwtBundle, encodeSpiffeBundle, parseSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';
import type { Random } from '../random.ts';
import { damageJson, damageText } from './mutate.ts';
import { documents, TRUST_DOMAIN } from './samples.ts';
import { hold, type Target } from './target.ts';

const PIECES = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  '\\',
  '\\u0000',
  '\\ud800',
  'null',
  'true',
  '0',
  '-1',
  '1e999',
  '18446744073709551616',
  '"keys":',
  '"kty":"oct"',
  '"use":"sig"',
  '"kid":"a"',
  '"x5c":[]',
  ' ',
  '\n',
  '\ufeff',
  '=',
];
const MAX_MESSAGE = 600;

export const bundles: Target = {
  name: 'bundle',
  make(random: Random) {
    // the whole one, with every kind of key, costs the most to publish again
    const document = random.oneIn(8) ? documents[0]! : random.pick(documents.slice(1));
    if (random.oneIn(3)) return damageText(random, document, PIECES);
    let value: unknown = JSON.parse(document);
    for (let left = 1 + random.below(3); left > 0; left--) value = damageJson(random, value);
    return JSON.stringify(value);
  },
  check(input) {
    const parsed = parseSpiffeBundle(input as string, TRUST_DOMAIN);
    if (!parsed.ok) {
      hold('the refusal is one short line', parsed.error.length <= MAX_MESSAGE && !/[\r\n]/.test(parsed.error));
      return false;
    }
    const written = encodeSpiffeBundle(parsed.value);
    const again = parseSpiffeBundle(written, TRUST_DOMAIN);
    hold('what is published is read', again.ok);
    hold('and is the same', again.ok && encodeSpiffeBundle(again.value) === written);
    JSON.parse(encodeJwtBundle(parsed.value));
    JSON.parse(encodeJwks(parsed.value));
    return true;
  },
};
