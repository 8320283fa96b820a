/** One truth for structs: what the compiler made of abi.h, through BTF, against the codecs in TypeScript. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { native } from '../../../native/index.ts';
import * as layout from '../../../src/datapath/layout.ts';
import { AUTH_TYPE_CODE } from '../../../src/model/datapath.ts';
import { clang } from '../native/clang.ts';

const abi = join(import.meta.dirname, '../../../bpf/abi/abi.h');
const directory = mkdtempSync(join(tmpdir(), 'cs-t-layout-'));

/** BTF of every struct named, whether a program uses it or not. */
function compileStructs(names: readonly string[]): string {
  const source = join(directory, 'structs.c');
  const uses = names.map((name, i) => `struct ${name} use_${i};`).join('\n');
  writeFileSync(source, `#include <linux/types.h>\n#include "${abi}"\n${uses}\n`);
  const object = join(directory, 'structs.o');
  const include = `/usr/include/${execFileSync('gcc', ['-dumpmachine']).toString().trim()}`;
  execFileSync(clang(), ['-g', '-O2', '-target', 'bpf', `-I${include}`, '-c', source, '-o', object]);
  return object;
}

describe('layout', () => {
  const text = readFileSync(abi, 'utf8');
  let object: string;

  beforeAll(() => {
    object = compileStructs(layout.allStructs.map(({ name }) => name));
  });

  test.each(layout.allStructs.map((codec) => [codec.name, codec] as const))(
    '%s lies as the compiler laid it',
    (name, codec) => {
      const [compiled] = native().btfStructs(object, [name]);
      expect({ name, size: codec.size, members: codec.members }).toEqual(compiled);
    },
  );

  test('the numbers of abi.h are those of TypeScript', () => {
    const value = (name: string) => {
      const match = new RegExp(`\\b${name}\\s*=?\\s*(\\(1u << (\\d+)\\)|\\d+)`).exec(text);
      expect(match, name).not.toBeNull();
      return match![2] === undefined ? Number(match![1]) : 1 << Number(match![2]);
    };
    expect({
      CS_ABI_VERSION: layout.ABI_VERSION,
      CS_CFG_ALLOW_UNBOUND: layout.CFG_ALLOW_UNBOUND,
      CS_CFG_OBSERVE: layout.CFG_OBSERVE,
      CS_CFG_STOPPED: layout.CFG_STOPPED,
      CS_EXEMPT_DHCP: layout.EXEMPT_DHCP,
      CS_EXEMPT_HOST_PROBES: layout.EXEMPT_HOST_PROBES,
      CS_EP_OPEN: layout.EP_OPEN,
      CS_EP_FENCES: layout.EP_FENCES,
      CS_IP_LOCAL: layout.IP_LOCAL,
      CS_IP_RESERVED: layout.IP_RESERVED,
      CS_IP_ENCRYPT: layout.IP_ENCRYPT,
      CS_PREFIX_CLUSTER: layout.PREFIX_CLUSTER,
      CS_PREFIX_ENCRYPT: layout.PREFIX_ENCRYPT,
      CS_CLASS_ASKS: layout.CLASS_ASKS | 0,
      CS_POLICY_ALLOW: layout.POLICY_ALLOW,
      CS_POLICY_DENY: layout.POLICY_DENY,
      CS_EGRESS: layout.EGRESS,
      CS_INGRESS: layout.INGRESS,
      CS_AUTH_NONE: AUTH_TYPE_CODE.none,
      CS_AUTH_SPIFFE: AUTH_TYPE_CODE.spiffe,
      CS_AUTH_ALWAYS_FAIL: AUTH_TYPE_CODE['test-always-fail'],
      CS_AUTH_CONNECTION: AUTH_TYPE_CODE['spiffe-connection'],
      CS_AUTH_REFUSED: layout.AUTH_REFUSED,
      CS_AUTH_TAKEN: layout.AUTH_TAKEN,
    }).toEqual(
      Object.fromEntries(
        [
          'CS_ABI_VERSION',
          'CS_CFG_ALLOW_UNBOUND',
          'CS_CFG_OBSERVE',
          'CS_CFG_STOPPED',
          'CS_EXEMPT_DHCP',
          'CS_EXEMPT_HOST_PROBES',
          'CS_EP_OPEN',
          'CS_EP_FENCES',
          'CS_IP_LOCAL',
          'CS_IP_RESERVED',
          'CS_IP_ENCRYPT',
          'CS_PREFIX_CLUSTER',
          'CS_PREFIX_ENCRYPT',
          'CS_CLASS_ASKS',
          'CS_POLICY_ALLOW',
          'CS_POLICY_DENY',
          'CS_EGRESS',
          'CS_INGRESS',
          'CS_AUTH_NONE',
          'CS_AUTH_SPIFFE',
          'CS_AUTH_ALWAYS_FAIL',
          'CS_AUTH_CONNECTION',
          'CS_AUTH_REFUSED',
          'CS_AUTH_TAKEN',
        ].map((name) => [name, value(name)]),
      ),
    );
    expect(layout.FLOW_STATES).toEqual(
      Object.fromEntries(Object.keys(layout.FLOW_STATES).map((name) => [name, value(`CS_FLOW_${name}`)])),
    );
    expect(Object.entries(layout.EVENT_KINDS)).toEqual([
      [String(value('CS_EVENT_VOUCH_MISS')), 'vouch-miss'],
      [String(value('CS_EVENT_AUTH_MISS')), 'auth-miss'],
      [String(value('CS_EVENT_DROP')), 'drop'],
      [String(value('CS_EVENT_VERDICT')), 'verdict'],
      [String(value('CS_EVENT_OBSERVED')), 'observed'],
    ]);
  });

  test('what is encoded is decoded, and padding is always zero', () => {
    const u32 = fc.integer({ min: 0, max: 0xffffffff });
    fc.assert(
      fc.property(u32, u32, u32, fc.integer({ min: 0, max: 255 }), (local, remote, remote_node, auth_type) => {
        const key = { local, remote, remote_node, auth_type };
        const bytes = layout.authKeyStruct.encode(key);
        expect(bytes.subarray(13)).toEqual(Buffer.alloc(3));
        expect(layout.authKeyStruct.decode(bytes)).toEqual(key);
      }),
    );
    expect(() => layout.authKeyStruct.decode(Buffer.alloc(15))).toThrow(RangeError);
  });
});
