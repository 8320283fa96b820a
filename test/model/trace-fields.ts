/** What the monitor reads of an event's fields, and how it refuses one. */
export class Refused extends Error {
  readonly rule: string;
  constructor(rule: string, why: string) {
    super(why);
    this.rule = rule;
  }
}

export function must(condition: boolean, rule: string, why: string): asserts condition {
  if (!condition) throw new Refused(rule, why);
}

export function generationsOf(entries: unknown): Map<string, bigint> | undefined {
  const list = entries as { ip: string; generation: unknown }[] | undefined;
  return list && new Map(list.map(({ ip, generation }) => [ip, version(generation)]));
}

export function text(value: unknown): string {
  return String(value);
}

export function version(value: unknown): bigint {
  must(
    typeof value === 'number' || typeof value === 'string' || typeof value === 'bigint',
    'Trace',
    `no number: ${String(value)}`,
  );
  return BigInt(value);
}
