/** What lies where in a log's directory, and reading line files of any size in constant memory. */
import { closeSync, existsSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';

/** C2SP name: the newest signed checkpoint. */
export const CHECKPOINT_FILE = 'checkpoint';
/** Every checkpoint ever signed, one JSON string with the note on each line: they locate a change, and a new one replaces none. */
export const CHECKPOINTS_FILE = 'checkpoints.jsonl';
export const SIGNING_KEY_FILE = 'signing.key';
export const VKEY_FILE = 'signing.vkey';
export const KEY_CERT_FILE = 'key.cert';
export const LOCK_FILE = 'lock';

/** A longer line was not written by this log: a dozen texts of 1,024 characters, six bytes each at worst, and the details cut to fit. */
export const MAX_LINE_LENGTH = 128 * 1024;
const CHUNK = 1 << 20;

/** A file of events is named by the number of its first one, so that several in a row make one log. */
export function eventsFileName(firstSeq: number): string {
  return `events-${String(firstSeq).padStart(16, '0')}.jsonl`;
}

export interface EventsFile {
  readonly path: string;
  readonly firstSeq: number;
}

/** In order. */
export function eventsFiles(dir: string): EventsFile[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .map((name) => ({ name, match: /^events-(\d{16})\.jsonl$/.exec(name) }))
    .filter((f) => f.match !== null)
    .map((f) => ({ path: join(dir, f.name), firstSeq: Number(f.match![1]) }))
    .sort((a, b) => a.firstSeq - b.firstSeq);
}

export interface Line {
  /** Without its newline; valid until the next line is asked for. */
  readonly bytes: Buffer;
  /** Of the line's first byte. */
  readonly offset: number;
  /** False for a last line without a newline, and for one that is too long, after which no more follow. */
  readonly whole: boolean;
}

export function* readLines(path: string): Generator<Line, void, void> {
  const fd = openSync(path, 'r');
  try {
    let rest = Buffer.alloc(0);
    let offset = 0;
    for (;;) {
      const chunk = Buffer.allocUnsafe(CHUNK);
      const n = readSync(fd, chunk, 0, CHUNK, null);
      if (n === 0) break;
      const data = rest.length === 0 ? chunk.subarray(0, n) : Buffer.concat([rest, chunk.subarray(0, n)]);
      let start = 0;
      for (let end = data.indexOf(0x0a); end >= 0; end = data.indexOf(0x0a, start)) {
        const whole = end - start <= MAX_LINE_LENGTH;
        yield { bytes: data.subarray(start, end), offset, whole };
        if (!whole) return;
        offset += end - start + 1;
        start = end + 1;
      }
      rest = data.subarray(start);
      if (rest.length > MAX_LINE_LENGTH) break;
    }
    if (rest.length > 0) yield { bytes: rest, offset, whole: false };
  } finally {
    closeSync(fd);
  }
}
