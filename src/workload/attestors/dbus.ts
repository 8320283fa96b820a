/** As much of D-Bus as a question to systemd needs: calls with strings, answered by one string (D-Bus Specification 0.43). */
import { connect, type Socket } from 'node:net';

export interface BusCall {
  readonly destination: string;
  readonly path: string;
  readonly interface: string;
  readonly member: string;
  readonly strings: readonly string[];
}

export interface Bus {
  /** The answer's string, object path, or variant of a string. @throws Error with the D-Bus error's name */
  call(call: BusCall): Promise<string>;
  close(): void;
}

const MAX_MESSAGE_BYTES = 64 * 1024;
const TYPE = { call: 1, answer: 2, error: 3 } as const;
const FIELD = { path: 1, interface: 2, member: 3, errorName: 4, replySerial: 5, destination: 6, signature: 8 } as const;

/** @throws when nobody listens there, or who does it is no bus that accepts this process. */
export async function connectBus(socketPath: string, signal: AbortSignal): Promise<Bus> {
  signal.throwIfAborted();
  const socket = connect(socketPath);
  socket.on('error', () => {}); // whoever reads is told
  const stop = () => socket.destroy(new Error('D-Bus: no answer in time'));
  signal.addEventListener('abort', stop);
  socket.once('close', () => signal.removeEventListener('abort', stop));
  try {
    return await begin(socket);
  } catch (thrown) {
    socket.destroy();
    throw thrown;
  }
}

async function begin(socket: Socket): Promise<Bus> {
  const input = readerOf(socket);
  // "Authentication Protocol", mechanism EXTERNAL: who asks is known by the socket's credentials
  socket.write(`\0AUTH EXTERNAL ${Buffer.from(String(process.getuid!())).toString('hex')}\r\n`);
  if (!(await input.line()).startsWith('OK ')) throw new Error('D-Bus: the bus does not accept this process');
  socket.write('BEGIN\r\n');
  let serial = 0;
  const bus: Bus = {
    async call(call) {
      socket.write(encodeCall(call, ++serial));
      for (;;) {
        const message = await readMessage(input);
        if (message.replySerial !== serial) continue; // a signal, or what is none of ours
        if (message.type === TYPE.error) throw new Error(`D-Bus: ${message.errorName}`);
        return message.text;
      }
    },
    close: () => socket.destroy(),
  };
  const name = 'org.freedesktop.DBus';
  await bus.call({ destination: name, path: '/org/freedesktop/DBus', interface: name, member: 'Hello', strings: [] });
  return bus;
}

function encodeCall(call: BusCall, serial: number): Buffer {
  const body = writer();
  for (const text of call.strings) body.string(text);
  const fields = writer();
  const field = (code: number, type: string, text: string) => {
    fields.align(8);
    fields.byte(code);
    fields.signature(type);
    if (type === 'g') fields.signature(text);
    else fields.string(text);
  };
  field(FIELD.path, 'o', call.path);
  field(FIELD.interface, 's', call.interface);
  field(FIELD.member, 's', call.member);
  field(FIELD.destination, 's', call.destination);
  if (call.strings.length > 0) field(FIELD.signature, 'g', 's'.repeat(call.strings.length));
  const [head, fieldBytes, bodyBytes] = [Buffer.alloc(16), fields.bytes(), body.bytes()];
  head.write('l', 0, 'latin1'); // little-endian
  head.writeUInt8(TYPE.call, 1);
  head.writeUInt8(0x02, 2); // NO_AUTO_START
  head.writeUInt8(1, 3);
  head.writeUInt32LE(bodyBytes.length, 4);
  head.writeUInt32LE(serial, 8);
  head.writeUInt32LE(fieldBytes.length, 12);
  return Buffer.concat([head, fieldBytes, Buffer.alloc(padding(fieldBytes.length, 8)), bodyBytes]);
}

function padding(length: number, to: number): number {
  return (to - (length % to)) % to;
}

function writer() {
  let bytes = Buffer.alloc(0);
  const add = (more: Buffer) => {
    bytes = Buffer.concat([bytes, more]);
  };
  const align = (to: number) => add(Buffer.alloc(padding(bytes.length, to)));
  const byte = (value: number) => add(Buffer.of(value));
  return {
    align,
    byte,
    string(text: string) {
      align(4);
      const length = Buffer.alloc(4);
      length.writeUInt32LE(Buffer.byteLength(text));
      add(Buffer.concat([length, Buffer.from(text), Buffer.of(0)]));
    },
    signature(text: string) {
      byte(text.length);
      add(Buffer.from(`${text}\0`));
    },
    bytes: () => bytes,
  };
}

interface Message {
  readonly type: number;
  readonly replySerial: number | undefined;
  readonly errorName: string;
  /** What the body begins with, if that is text. */
  readonly text: string;
}

async function readMessage(input: Input): Promise<Message> {
  const head = await input.bytes(16);
  if (head[0] !== 0x6c || head[3] !== 1) throw new Error('D-Bus: not a little-endian message of version 1');
  const [bodyLength, fieldsLength] = [head.readUInt32LE(4), head.readUInt32LE(12)];
  const paddedFields = fieldsLength + padding(fieldsLength, 8);
  if (bodyLength + paddedFields > MAX_MESSAGE_BYTES) throw new Error('D-Bus: the message is too large');
  const fields = cursor((await input.bytes(paddedFields)).subarray(0, fieldsLength));
  const body = cursor(await input.bytes(bodyLength));
  let [replySerial, errorName, signature]: [number | undefined, string, string] = [undefined, '', ''];
  while (!fields.atEnd()) {
    fields.align(8);
    const code = fields.byte();
    const value = fields.value(fields.signature());
    if (code === FIELD.replySerial) replySerial = Number(value);
    if (code === FIELD.errorName) errorName = String(value);
    if (code === FIELD.signature) signature = String(value);
  }
  const isText = signature === 's' || signature === 'o';
  const text = isText ? body.value(signature) : signature === 'v' ? body.value(body.signature()) : '';
  return { type: head[1]!, replySerial, errorName, text: String(text) };
}

/** Reads beyond the end throw: RangeError by Buffer, or here. */
function cursor(bytes: Buffer) {
  let at = 0;
  const align = (to: number) => {
    at += padding(at, to);
  };
  const take = (length: number) => {
    if (at + length > bytes.length) throw new Error('D-Bus: a message ends too early');
    at += length;
    return bytes.subarray(at - length, at);
  };
  const byte = () => take(1)[0]!;
  const signature = () => {
    const text = take(byte()).toString('latin1');
    take(1);
    return text;
  };
  const uint32 = () => {
    align(4);
    return take(4).readUInt32LE();
  };
  const string = () => {
    const text = take(uint32()).toString();
    take(1);
    return text;
  };
  return {
    align,
    byte,
    signature,
    atEnd: () => at >= bytes.length,
    value(type: string): string | number {
      if (type === 's' || type === 'o') return string();
      if (type === 'g') return signature();
      if (type === 'u') return uint32();
      throw new Error(`D-Bus: a value of type ${JSON.stringify(type)} where none is expected`);
    },
  };
}

interface Input {
  /** Without its CR LF. */
  line(): Promise<string>;
  bytes(length: number): Promise<Buffer>;
}

function readerOf(socket: Socket): Input {
  const chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let held = Buffer.alloc(0);
  const more = async () => {
    const next = await chunks.next();
    if (next.done) throw new Error('D-Bus: the bus closed the connection');
    held = Buffer.concat([held, next.value]);
    if (held.length > 2 * MAX_MESSAGE_BYTES) throw new Error('D-Bus: the bus sends too much');
  };
  return {
    async line() {
      for (;;) {
        const end = held.indexOf('\r\n');
        if (end >= 0) {
          const text = held.subarray(0, end).toString('latin1');
          held = held.subarray(end + 2);
          return text;
        }
        await more();
      }
    },
    async bytes(length) {
      while (held.length < length) await more();
      const taken = held.subarray(0, length);
      held = held.subarray(length);
      return taken;
    },
  };
}
