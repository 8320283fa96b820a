/** A prefix back to its text. */
import type { Prefix } from '../src/model/address.ts';

export function formatPrefix(prefix: Prefix): string {
  return `${prefix.address}/${prefix.length}`;
}
