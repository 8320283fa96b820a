import { describe, expect, it } from 'vitest';
import { InterfaceTable } from '../../../src/agent/interfaces.ts';
import {
  attribute,
  cString,
  decodeMessages,
  encodeMessage,
  type NetlinkMessage,
  nested,
} from '../../../src/base/netlink.ts';

const NEW = 16;
const DEL = 17;

function link(type: number, ifindex: number, names: readonly string[], family = 0): NetlinkMessage {
  const ifinfo = Buffer.alloc(16);
  ifinfo.writeUInt8(family, 0);
  ifinfo.writeInt32LE(ifindex, 4);
  const [name, ...other] = names;
  const properties = other.map((each) => attribute(53, cString(each)));
  const body = [ifinfo, attribute(3, cString(name!)), ...(other.length > 0 ? [nested(52, ...properties)] : [])];
  return decodeMessages(encodeMessage(type, 0, ...body))[0]!;
}

function told(table: InterfaceTable, ...messages: readonly NetlinkMessage[]): string[] {
  const touched = new Set<string>();
  for (const message of messages) expect(table.apply(message, touched)).toBe(true);
  return [...touched].sort();
}

describe('the table of interfaces', () => {
  it('knows what came and forgets what went, and tells the names', () => {
    const table = new InterfaceTable();
    expect(told(table, link(NEW, 7, ['v-a']))).toEqual(['v-a']);
    expect(table.indexOf('v-a')).toBe(7);
    expect(told(table, link(NEW, 7, ['v-a']))).toEqual([]); // only its flags changed
    expect(told(table, link(DEL, 7, ['v-a']))).toEqual(['v-a']);
    expect(table.indexOf('v-a')).toBeUndefined();
  });

  it('follows a new name, and other names', () => {
    const table = new InterfaceTable();
    told(table, link(NEW, 7, ['eth0']));
    expect(told(table, link(NEW, 7, ['wan', 'uplink']))).toEqual(['eth0', 'uplink', 'wan']);
    expect([table.indexOf('eth0'), table.indexOf('wan'), table.indexOf('uplink')]).toEqual([undefined, 7, 7]);
  });

  it('keeps a name that a new interface took before the old one was told gone', () => {
    const table = new InterfaceTable();
    told(table, link(NEW, 7, ['v-a']), link(NEW, 8, ['v-a']), link(DEL, 7, ['v-a']));
    expect(table.indexOf('v-a')).toBe(8);
  });

  it('does not take a port that leaves its bridge for an interface that goes', () => {
    const table = new InterfaceTable();
    told(table, link(NEW, 7, ['v-a']));
    expect(told(table, link(DEL, 7, ['v-a'], 7))).toEqual([]);
    expect(table.indexOf('v-a')).toBe(7);
  });

  it('says when messages were lost, and takes the whole table anew', () => {
    const table = new InterfaceTable();
    told(table, link(NEW, 7, ['v-a']), link(NEW, 8, ['v-b']));
    expect(table.apply({ type: 4, flags: 0, body: Buffer.alloc(0) }, new Set())).toBe(false);
    const touched = new Set<string>();
    table.replace([link(NEW, 8, ['v-b']), link(NEW, 9, ['v-c'])], touched);
    expect([...touched].sort()).toEqual(['v-a', 'v-c']);
    expect([table.indexOf('v-a'), table.indexOf('v-b'), table.indexOf('v-c')]).toEqual([undefined, 8, 9]);
  });
});
