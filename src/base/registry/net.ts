/** Fixed numbers of the network side: marks, tables, priorities, ports. All that can collide with others stands here. */
export const NET = {
  peerPort: 4250,
  /** fwmark bits the datapath uses; bpf/abi/abi.h defines their layout. */
  markMask: 0xffff0000,
  holdDevice: 'cs-hold0',
  wireguardDevice: 'cs-wg0',
  wireguardPort: 51871,
  /** tc filter identity of clsact attachments. */
  tcPriority: 0xc5,
  tcHandle: 1,
} as const;
