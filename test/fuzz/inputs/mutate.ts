/** Damage: to bytes anywhere, to a DER element with all lengths around it made right again, to text, to a JSON value. */
import { der } from '../../../src/pki/der.ts';
import type { Random } from '../random.ts';

const BYTES = [
  0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x13, 0x16, 0x30, 0x31, 0x7f, 0x80, 0x81, 0x82, 0x84, 0xa0, 0xa3,
  0xff,
];

export function randomBytes(random: Random, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let i = 0; i < length; i++) bytes[i] = random.below(256);
  return bytes;
}

/** One to four changes; now and then none. `others` lend pieces. */
export function damage(random: Random, bytes: Buffer, others: readonly Buffer[]): Buffer {
  let out = bytes;
  for (let left = random.below(5); left > 0; left--) out = damageOnce(random, out, others);
  return out;
}

function damageOnce(random: Random, bytes: Buffer, others: readonly Buffer[]): Buffer {
  if (bytes.length === 0) return randomBytes(random, 1 + random.below(40));
  const at = random.below(bytes.length);
  const length = 1 + random.below(Math.min(bytes.length - at, 40));
  const [before, cut, after] = [bytes.subarray(0, at), bytes.subarray(at, at + length), bytes.subarray(at + length)];
  switch (random.below(8)) {
    case 0: {
      const out = Buffer.from(bytes);
      out[at] = out[at]! ^ (1 << random.below(8));
      return out;
    }
    case 1: {
      const out = Buffer.from(bytes);
      out[at] = random.pick(BYTES);
      return out;
    }
    case 2:
      return Buffer.concat([before, after]);
    case 3:
      return Buffer.concat([before, cut, cut, after]);
    case 4:
      return Buffer.concat([before, randomBytes(random, length), bytes.subarray(at)]);
    case 5: {
      const other = random.pick(others);
      const from = random.below(other.length);
      return Buffer.concat([before, other.subarray(from, from + length), after]);
    }
    case 6:
      return Buffer.from(bytes.subarray(0, at));
    default:
      return Buffer.concat([bytes, cut]);
  }
}

interface Element {
  tag: number;
  /** Elements of a constructed one, content of a primitive one. */
  content: Element[] | Buffer;
  /** Writes the length in so many octets after the first, whether it needs them or not. 0: indefinite. */
  lengthOctets?: number;
}

/** Elements as far as the bytes are DER. What is not is left as content. */
function elements(bytes: Buffer): Element[] | undefined {
  const out: Element[] = [];
  for (let at = 0; at < bytes.length; ) {
    const tag = bytes[at++]!;
    let length = bytes[at++];
    if (length === undefined) return undefined;
    if (length >= 0x80) {
      const count = length & 0x7f;
      if (count === 0 || count > 3 || at + count > bytes.length) return undefined;
      length = bytes.readUIntBE(at, count);
      at += count;
    }
    if (at + length > bytes.length) return undefined;
    const content = bytes.subarray(at, at + length);
    out.push({ tag, content: (tag & 0x20) === 0 ? content : (elements(content) ?? content) });
    at += length;
  }
  return out;
}

function write({ tag, content, lengthOctets }: Element): Buffer {
  const parts = Buffer.isBuffer(content) ? [content] : content.map(write);
  if (lengthOctets === undefined) return der(tag, ...parts);
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const octets = Buffer.alloc(lengthOctets);
  for (let i = 0; i < lengthOctets; i++) octets[lengthOctets - 1 - i] = i < 4 ? (length >>> (8 * i)) & 0xff : 0;
  return Buffer.concat([Buffer.of(tag, 0x80 | lengthOctets), octets, ...parts]);
}

/** A change of one element, with the lengths of all that hold it made right: gets past the door that random bytes stop at. */
export function damageElement(random: Random, bytes: Buffer, others: readonly Buffer[]): Buffer {
  const tree = elements(bytes);
  if (tree === undefined) return damage(random, bytes, others);
  let list = tree;
  // down by chance, to any depth
  for (;;) {
    const inner = list.filter((element) => !Buffer.isBuffer(element.content) && element.content.length > 0);
    if (inner.length === 0 || random.oneIn(4)) break;
    list = random.pick(inner).content as Element[];
  }
  const at = random.below(list.length);
  const element = list[at]!;
  switch (random.below(8)) {
    case 0:
      list.splice(at, 1);
      break;
    case 1:
      list.splice(at, 0, element);
      break;
    case 2:
      element.tag = random.pick(BYTES);
      break;
    case 3:
      list.push(list.splice(at, 1)[0]!);
      break;
    case 4:
      list.splice(at, 0, { tag: random.pick(BYTES), content: randomBytes(random, random.below(20)) });
      break;
    case 5:
      element.content = randomBytes(random, random.pick([0, 1, 8, 20, 32, 128, 255, 2048, 3000]));
      break;
    case 6:
      element.lengthOctets = random.below(6);
      break;
    default:
      element.content = damage(random, Buffer.isBuffer(element.content) ? element.content : write(element), others);
  }
  return Buffer.concat(tree.map(write));
}

/** As damage, of text; `alphabet` is what it is likely to be made of. */
export function damageText(random: Random, text: string, alphabet: readonly string[]): string {
  let out = text;
  for (let left = random.below(4); left > 0; left--) {
    const at = random.below(out.length + 1);
    const length = random.below(12);
    const piece = random.pick(alphabet);
    out = random.pick([
      out.slice(0, at) + piece + out.slice(at),
      out.slice(0, at) + out.slice(at + length),
      out.slice(0, at) + piece + out.slice(at + length),
      out.slice(0, at) + piece.repeat(1 + random.below(300)) + out.slice(at),
      out.slice(0, at) + out.slice(at, at + length).repeat(2) + out.slice(at + length),
    ]);
  }
  return out;
}

/** What a JSON parser gives and a careless reader does not expect. */
const VALUES: readonly unknown[] = [
  null,
  true,
  false,
  0,
  -1,
  1.5,
  1e308,
  2 ** 53,
  '',
  ' ',
  'a',
  '\u0000',
  '\ud800',
  '__proto__',
  'x'.repeat(3000),
  [],
  [null],
  [[]],
  {},
  { a: 1 },
  { __proto__: null, toString: 1 },
];

/** A copy with one member changed, doubled, taken away or put in, anywhere in it. */
export function damageJson(random: Random, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || random.oneIn(8)) return random.pick(VALUES);
  if (Array.isArray(value)) {
    const out = [...value];
    const at = random.below(out.length + 1);
    if (at === out.length || random.oneIn(6)) out.splice(at, 0, random.pick([...VALUES, ...value]));
    else if (random.oneIn(5)) out.splice(at, 1);
    else out[at] = damageJson(random, out[at]);
    return out;
  }
  const members = Object.entries(value);
  const at = random.below(members.length + 1);
  const member = members[at];
  if (member === undefined)
    members.push([
      random.pick(['x', '__proto__', 'constructor', 'kid', 'crit', 'b64', 'jwk', 'x5c', 'nbf']),
      random.pick(VALUES),
    ]);
  else if (random.oneIn(5)) members.splice(at, 1);
  else members[at] = [member[0], damageJson(random, member[1])];
  return Object.fromEntries(members);
}
