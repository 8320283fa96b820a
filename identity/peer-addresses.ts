/** Where a node says its peers reach it: from the network, so bounded and strictly parsed. */
import { isIP } from 'node:net';
import { CountersignError } from '../src/base/errors.ts';
import { parseAddress } from '../src/model/address.ts';

const MAX_ADDRESSES = 8;

/** "192.0.2.1:4250", "[2001:db8::1]:4250". @throws CountersignError bad-input */
export function parsePeerAddresses(texts: readonly string[]): string[] {
  if (texts.length > MAX_ADDRESSES) throw new CountersignError('bad-input', `at most ${MAX_ADDRESSES} peer addresses`);
  for (const text of texts) {
    const match = /^(?:\[([0-9a-f:.]{2,45})\]|([0-9.]{7,15})):(\d{1,5})$/.exec(text);
    const host = match?.[1] ?? match?.[2] ?? '';
    const port = Number(match?.[3]);
    const wanted = match?.[1] === undefined ? 4 : 6;
    if (isIP(host) !== wanted || parseAddress(host) === undefined || port < 1 || port > 65_535) {
      throw new CountersignError('bad-input', 'a peer address is not IP:port or [IPv6]:port');
    }
  }
  return [...texts];
}
