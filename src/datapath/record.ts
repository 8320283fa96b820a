/** Codec of a C struct: fields in order, naturally aligned, little-endian. layout.ts says which structs there are. */

export interface Field<T> {
  readonly size: number;
  readonly align: number;
  read(bytes: Buffer, at: number): T;
  write(bytes: Buffer, at: number, value: T): void;
}

export const u8: Field<number> = {
  size: 1,
  align: 1,
  read: (bytes, at) => bytes.readUInt8(at),
  write: (bytes, at, value) => void bytes.writeUInt8(value, at),
};

export const u16: Field<number> = {
  size: 2,
  align: 2,
  read: (bytes, at) => bytes.readUInt16LE(at),
  write: (bytes, at, value) => void bytes.writeUInt16LE(value, at),
};

export const u32: Field<number> = {
  size: 4,
  align: 4,
  read: (bytes, at) => bytes.readUInt32LE(at),
  write: (bytes, at, value) => void bytes.writeUInt32LE(value, at),
};

export const u64: Field<bigint> = {
  size: 8,
  align: 8,
  read: (bytes, at) => bytes.readBigUInt64LE(at),
  write: (bytes, at, value) => void bytes.writeBigUInt64LE(value, at),
};

/** An array of two. */
export const u32Pair: Field<readonly [number, number]> = {
  size: 8,
  align: 4,
  read: (bytes, at) => [bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4)],
  write: (bytes, at, value) => {
    bytes.writeUInt32LE(value[0], at);
    bytes.writeUInt32LE(value[1], at + 4);
  },
};

/** A byte array (or a struct that is one); reading copies. @throws RangeError when writing another length. */
export function byteArray(size: number): Field<Buffer> {
  return {
    size,
    align: 1,
    read: (bytes, at) => Buffer.from(bytes.subarray(at, at + size)),
    write: (bytes, at, value) => {
      if (value.length !== size) throw new RangeError(`expected ${size} bytes, got ${value.length}`);
      bytes.set(value, at);
    },
  };
}

/** Bytes that carry nothing: always written as zero, so that keys compare equal. */
export function padding(size: number, align = 1): Field<undefined> {
  return {
    size,
    align,
    read: () => undefined,
    write: (bytes, at) => void bytes.fill(0, at, at + size),
  };
}

type Fields = Readonly<Record<string, Field<unknown>>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;
type DataNames<F extends Fields> = { [K in keyof F]: undefined extends ValueOf<F[K]> ? never : K }[keyof F];
/** What a struct holds, without its padding. */
export type Values<F extends Fields> = { [K in DataNames<F>]: ValueOf<F[K]> };

export interface Member {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
}

export interface Codec<T> {
  readonly name: string;
  readonly size: number;
  readonly members: readonly Member[];
  encode(values: T): Buffer;
  encodeInto(bytes: Buffer, at: number, values: T): void;
  /** @throws RangeError when fewer than `size` bytes follow `at`. */
  decode(bytes: Buffer, at?: number): T;
}

/** @param fields in the order of the C struct, by its names. */
export function struct<const F extends Fields>(name: string, fields: F): Codec<Values<F>> {
  let offset = 0;
  let align = 1;
  const laid = Object.entries(fields).map(([fieldName, field]) => {
    offset = Math.ceil(offset / field.align) * field.align;
    const member = { name: fieldName, offset, size: field.size, field };
    offset += field.size;
    align = Math.max(align, field.align);
    return member;
  });
  const size = Math.ceil(offset / align) * align;
  const encodeInto = (bytes: Buffer, at: number, values: Values<F>) => {
    for (const member of laid) {
      member.field.write(bytes, at + member.offset, (values as Record<string, unknown>)[member.name]);
    }
  };
  return {
    name,
    size,
    members: laid.map(({ name, offset, size }) => ({ name, offset, size })),
    encodeInto,
    encode(values) {
      const bytes = Buffer.alloc(size);
      encodeInto(bytes, 0, values);
      return bytes;
    },
    decode(bytes, at = 0) {
      if (bytes.length < at + size)
        throw new RangeError(`${name} has ${size} bytes, only ${bytes.length - at} are left`);
      const out: Record<string, unknown> = {};
      for (const member of laid) {
        const value = member.field.read(bytes, at + member.offset);
        if (value !== undefined) out[member.name] = value;
      }
      return out as Values<F>;
    },
  };
}
