/** The table: a line is a packet, what is in the maps, and the verdict.
 *
 *     program PACKET | statement; statement; … | verdict
 *
 * The statements begin with the small world of `statements.ts`, in which everybody is known and nothing is allowed, and
 * change it one after the other; a statement that begins with a program's name is a packet that came before. The verdict
 * is `drop REASON`, `hold`, or `pass`, with `mark:…` where it is not the usual one (the sender's stamp out of a workload,
 * elsewhere the mark it came with) and `observed:REASON` where it would have dropped. Each line is run in both families,
 * unless it begins with v4 or v6. */
import type { Addresses } from '../support/world.ts';

export interface Row {
  /** As written, for the test's name. */
  readonly text: string;
  readonly heading: string;
  readonly families: readonly Addresses['name'][];
  /** Program and packet. */
  readonly packet: string;
  readonly before: readonly string[];
  readonly verdict: string;
}

export function rows(text: string): Row[] {
  let heading = '';
  const out: Row[] = [];
  for (const line of text.split('\n').map((l) => l.trim())) {
    if (line === '') continue;
    if (line.startsWith('#')) {
      heading = line.slice(1).trim();
      continue;
    }
    const columns = line.split('|').map((c) => c.trim());
    if (columns.length !== 3) throw new Error(`a row has three columns: ${line}`);
    const [, only, packet] = /^(v4 |v6 )?(.*)$/.exec(columns[0]!)!;
    out.push({
      text: line.replace(/ +/g, ' '),
      heading,
      families: only === undefined ? ['IPv4', 'IPv6'] : only === 'v4 ' ? ['IPv4'] : ['IPv6'],
      packet: packet!,
      before: columns[1]!
        .split(';')
        .map((s) => s.trim())
        .filter((s) => s !== ''),
      verdict: columns[2]!,
    });
  }
  return out;
}
