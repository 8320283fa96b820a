/** Operational log (not the audit log): JSON lines on stderr. Values under these names are redacted wherever they stand. */
import { pino } from 'pino';

export type Logger = pino.Logger;
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent';

const secretNames = ['key', 'privateKey', 'token', 'joinToken', 'psk', 'presharedKey', 'secret', 'passphrase'];

export function createLogger(name: string, level: LogLevel): Logger {
  return pino(
    {
      name,
      level,
      base: undefined,
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: { paths: secretNames.flatMap((n) => [n, `*.${n}`]), censor: '[redacted]' },
    },
    pino.destination({ fd: 2, sync: true }),
  );
}
