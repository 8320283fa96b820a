/** IP protocols by the names people use. */
import { CountersignError } from '../base/errors.ts';

const numbers: Readonly<Record<string, number>> = { icmp: 1, tcp: 6, udp: 17, icmpv6: 58, sctp: 132 };
const names = new Map(Object.entries(numbers).map(([name, number]) => [number, name]));

export const protocolNames: readonly string[] = Object.keys(numbers);

export function protocolNumber(name: string): number | undefined {
  return Object.hasOwn(numbers, name) ? numbers[name] : undefined;
}

/** Of a query; left empty, tcp. @throws CountersignError bad-input */
export function protocolOf(name: string): number {
  const protocol = protocolNumber(name === '' ? 'tcp' : name);
  if (protocol === undefined)
    throw new CountersignError('bad-input', `protocol "${name}": there are ${protocolNames.join(', ')}`);
  return protocol;
}

/** Its number as text, if it has no name here. */
export function protocolName(number: number): string {
  return names.get(number) ?? String(number);
}
