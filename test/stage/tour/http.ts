/** HTTP requests as a user's client makes them, with what curl measured. */
import { SLOW } from '../../support/slow.ts';
import type { Stage } from '../stage.ts';

export interface HttpResult {
  readonly status: number;
  /** ms from the start of connect to its end, DNS excluded. */
  readonly connectMs: number;
  readonly error: string;
}

export async function curl(
  stage: Stage,
  from: string,
  url: string,
  options: { marker?: string; timeoutS?: number } = {},
): Promise<HttpResult> {
  const output = await stage.runIn(
    from,
    'curl',
    '-gsS',
    '-o',
    '/dev/null',
    '-m',
    String(options.timeoutS ?? 5 * SLOW),
    '-H',
    `x-marker: ${options.marker ?? 'none'}`,
    '-w',
    '%{http_code} %{time_connect}',
    url,
  );
  const [code, connect] = output.stdout.split(' ');
  return { status: Number(code ?? 0), connectMs: Number(connect ?? 0) * 1000, error: output.stderr.trim() };
}

/** URL of the backend's server at an address. */
export const url = (address: string, port: number): string =>
  `http://${address.includes(':') ? `[${address}]` : address}:${port}/`;
