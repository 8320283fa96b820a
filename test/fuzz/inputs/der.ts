/** The DER reader on any structure: it takes what it can write again to the last octet, and nothing else. */
import { type DerReader, der, readDer } from '../../../src/pki/der.ts';
import type { Random } from '../random.ts';
import { damage, damageElement, randomBytes } from './mutate.ts';
import { ders } from './samples.ts';
import { hold, type Target } from './target.ts';

const MAX_BYTES = 8192;

/** Goes into whatever is constructed, and writes what it reads. */
function rewrite(reader: DerReader): Buffer {
  const out: Buffer[] = [];
  while (!reader.atEnd) {
    const tag = reader.peek();
    out.push((tag & 0x20) === 0 ? der(tag, reader.content(tag)) : der(tag, rewrite(reader.enter(tag))));
  }
  return Buffer.concat(out);
}

export const derElements: Target = {
  name: 'der',
  make(random: Random) {
    if (random.oneIn(10)) return randomBytes(random, random.below(200));
    const sample = random.pick(ders);
    return random.oneIn(3) ? damage(random, sample, ders) : damageElement(random, sample, ders);
  },
  check(input) {
    const bytes = input as Buffer;
    const read = readDer(bytes, MAX_BYTES, rewrite);
    if (!read.ok) return false;
    hold('what is read is written again as it was', read.value.equals(bytes));
    return true;
  },
};
