import { describe, expect, it } from 'vitest';
import { parsePinName } from '../../../src/datapath/attach.ts';

describe('the pins of attachments', () => {
  it('are read as mode, program and interface', () => {
    expect(parsePinName('tcx-from_workload-12')).toEqual({ mode: 'tcx', program: 'from_workload', ifindex: 12 });
    expect(parsePinName('clsact-to_netdev-3')).toEqual({ mode: 'clsact', program: 'to_netdev', ifindex: 3 });
  });

  it.each([
    'new-tcx-from_workload-12',
    'qdisc-12',
    'tcx-constructor-1',
    'tcx-from_workload-',
    'netkit-from_workload-1',
    '',
  ])('do not include %j', (name) => {
    expect(parsePinName(name)).toBeUndefined();
  });
});
