/** Serial numbers: 128 bits from the system's generator, so that nobody can foretell one and none is given twice. */
import { randomFillSync } from 'node:crypto';

const SERIAL_BYTES = 16;
/** Asking the generator costs the same for one serial number as for many. */
const pool = Buffer.alloc(SERIAL_BYTES * 256);
let used = pool.length;

/** 16 bytes, not all zero. */
export function randomSerial(): Buffer {
  for (;;) {
    if (used === pool.length) {
      randomFillSync(pool);
      used = 0;
    }
    const serial = Buffer.from(pool.subarray(used, used + SERIAL_BYTES));
    used += SERIAL_BYTES;
    if (serial.some((byte) => byte !== 0)) return serial;
  }
}

/** Lower-case hex, no leading zeros beyond one byte, as certificates are listed and revoked. */
export function serialHex(serial: Buffer): string {
  return serial.subarray(serial.findIndex((byte) => byte !== 0)).toString('hex');
}
