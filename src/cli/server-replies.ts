/** Asking the identity server, and its JSON replies as a person reads them. */
import type { JsonReply, ServerAdminClient } from '../../proto/gen/countersign/admin/v1/admin.ts';
import { call, type Done, serverClient } from './admin-client.ts';
import type { CommonOptions } from './context.ts';
import { lines, printJson, table } from './output.ts';

export type Row = Record<string, unknown>;

export async function ask<T>(
  options: CommonOptions,
  method: (client: ServerAdminClient, done: Done<JsonReply>) => unknown,
): Promise<T> {
  const client = serverClient(options);
  return JSON.parse((await call<JsonReply>(client, (done) => method(client, done))).json) as T;
}

export function print({ output }: CommonOptions, reply: object): void {
  if (output === 'json') printJson(reply);
  else console.log(lines(reply));
}

/** `columns` are names of fields. */
export function printRows(
  { output }: CommonOptions,
  reply: object,
  rows: readonly Row[],
  columns: readonly string[],
  none: string,
): void {
  if (output === 'json') printJson(reply);
  else
    console.log(
      table(
        columns,
        rows.map((row) => columns.map((column) => text(row[column]))),
        none,
      ),
    );
}

function text(value: unknown): string {
  if (value === undefined || value === null) return '';
  if (Array.isArray(value)) return value.join(',');
  if (typeof value === 'object') {
    return Object.entries(value)
      .map(([name, inner]) => `${name}=${String(inner)}`)
      .join(',');
  }
  return String(value);
}
