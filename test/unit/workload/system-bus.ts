/** A small server that speaks D-Bus as systemd answers on it: which units there are, and where their files lie. */
import { randomBytes } from 'node:crypto';
import { createServer, type Socket } from 'node:net';

export async function systemBus(fragmentPaths: Record<string, string>) {
  const socketPath = `/tmp/cs-bus-${process.pid}-${randomBytes(4).toString('hex')}.sock`;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    let held = Buffer.alloc(0);
    let begun = false;
    socket.on('data', (data) => {
      held = Buffer.concat([held, data]);
      if (!begun) {
        const text = held.toString('latin1');
        if (text.includes('AUTH EXTERNAL ') && text.endsWith('\r\n') && !text.includes('BEGIN')) {
          socket.write('OK 0123456789abcdef0123456789abcdef\r\n');
        }
        const end = held.indexOf('BEGIN\r\n');
        if (end < 0) return;
        begun = true;
        held = held.subarray(end + 7);
      }
      for (let length = lengthOf(held); length !== undefined; length = lengthOf(held)) {
        socket.write(answer(held.subarray(0, length), fragmentPaths));
        held = held.subarray(length);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return {
    socketPath,
    close() {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Of the first whole message; undefined until it is there. */
function lengthOf(bytes: Buffer): number | undefined {
  if (bytes.length < 16) return undefined;
  const fields = bytes.readUInt32LE(12);
  const length = 16 + fields + ((8 - (fields % 8)) % 8) + bytes.readUInt32LE(4);
  return bytes.length < length ? undefined : length;
}

function answer(call: Buffer, fragmentPaths: Record<string, string>): Buffer {
  const serial = call.readUInt32LE(8);
  const text = call.toString('latin1');
  const string = (value: string) => {
    const head = Buffer.alloc(4);
    head.writeUInt32LE(value.length);
    return Buffer.concat([head, Buffer.from(`${value}\0`)]);
  };
  if (text.includes('Hello')) return message(serial, 's', string(':1.1'));
  const object = (unit: string) =>
    `/org/freedesktop/systemd1/unit/${unit.replace(/[^A-Za-z0-9]/g, (c) => `_${c.charCodeAt(0).toString(16)}`)}`;
  for (const [unit, path] of Object.entries(fragmentPaths)) {
    if (text.includes('GetUnit') && text.includes(`${unit}\0`)) return message(serial, 'o', string(object(unit)));
    // a variant: its signature, then the value, aligned to 4
    const variant = Buffer.concat([Buffer.from([1, 0x73, 0, 0]), string(path)]);
    if (text.includes('FragmentPath') && text.includes(object(unit))) return message(serial, 'v', variant);
  }
  throw new Error('what is asked here was not foreseen');
}

/** A method return. Its fields: REPLY_SERIAL, a uint32; SIGNATURE. */
function message(replySerial: number, signature: string, body: Buffer): Buffer {
  const fields = Buffer.from([5, 1, 0x75, 0, 0, 0, 0, 0, 8, 1, 0x67, 0, 1, signature.charCodeAt(0), 0]);
  fields.writeUInt32LE(replySerial, 4);
  const head = Buffer.from([0x6c, 2, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, fields.length, 0, 0, 0]);
  head.writeUInt32LE(body.length, 4);
  return Buffer.concat([head, fields, Buffer.alloc((8 - (fields.length % 8)) % 8), body]);
}
