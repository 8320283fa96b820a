/** "IP:port" and "[IPv6]:port" apart. */
import { parseAddress } from '../model/address.ts';

/** undefined if it is neither. */
export function parseDialAddress(text: string): { readonly host: string; readonly port: number } | undefined {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const host = parseAddress(match[1] ?? match[2] ?? '');
  const port = Number(match[3]);
  if (host === undefined || port < 1 || port > 65_535) return undefined;
  // Brackets for IPv6, and only for it.
  if ((match[1] !== undefined) !== host.includes(':')) return undefined;
  return { host, port };
}
