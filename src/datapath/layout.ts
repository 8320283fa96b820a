/** bpf/abi/abi.h in TypeScript: the only place that knows where a field lies. A test compares it with the object's BTF. */
import { byteArray, padding, struct, u8, u16, u32, u32Pair, u64 } from './record.ts';

export const ABI_VERSION = 3;

const addr = byteArray(16);

export const CFG_ALLOW_UNBOUND = 1 << 0;
export const CFG_OBSERVE = 1 << 1;
export const CFG_STOPPED = 1 << 2;
export const CFG_HOST_EGRESS = 1 << 3;
export const CFG_HOST_INGRESS = 1 << 4;

export const EXEMPT_DHCP = 1 << 0;
export const EXEMPT_HOST_PROBES = 1 << 1;

export const configStruct = struct('cs_config', {
  revision: u64,
  signal_interval_ns: u64,
  epoch: u32,
  policy_slot: u32,
  hold_ifindex: u32,
  hold_limit_identity: u32,
  hold_limit_total: u32,
  flags: u32,
  exempt: u32,
  verdict_sample: u32,
  peer_port: u16,
  pad: padding(6, 2),
});

export const EP_OPEN = 1 << 0;
export const EP_FENCES = 1 << 1;

export const endpointStruct = struct('cs_endpoint', {
  generation: u64,
  endpoint: u32,
  identity: u32,
  flags: u32,
  mac: byteArray(6),
  pad: padding(2, 2),
});

export const fenceKeyStruct = struct('cs_fence_key', { endpoint: u32, node: u32 });

export const hostExemptKeyStruct = struct('cs_host_exempt_key', { addr, port: u16, proto: u8, pad: padding(1) });

export const IP_LOCAL = 1 << 0;
export const IP_RESERVED = 1 << 1;
export const IP_ENCRYPT = 1 << 2;
export const NO_LEASE_END = 0xffff_ffff_ffff_ffffn;

export const addressStruct = struct('cs_addr', { b: addr });

export const ipcacheStruct = struct('cs_ipcache', {
  incarnation: u64,
  generation: u64,
  lease_ns: u64,
  identity: u32,
  node: u32,
  endpoint: u32,
  flags: u32,
});

export const PREFIX_CLUSTER = 1 << 0;
export const PREFIX_ENCRYPT = 1 << 1;

export const prefixKeyStruct = struct('cs_prefix_key', { prefixlen: u32, addr });
export const prefixStruct = struct('cs_prefix', { identity: u32, flags: u32 });

export const POLICY_ALLOW = 1;
export const POLICY_DENY = 2;
export const EGRESS = 0;
export const INGRESS = 1;

export const classKeyStruct = struct('cs_class_key', { identity: u32, slot: u8, pad: padding(3) });
export const classStruct = struct('cs_class', { local: u32Pair, remote: u32Pair, port_bits: u32Pair });

/** In port_bits: a hint, see abi.h. */
export const CLASS_ASKS = 0x8000_0000;

export const policyKeyStruct = struct('cs_policy_key', {
  local: u32,
  remote: u32,
  dport: u16,
  proto: u8,
  port_bits: u8,
  direction: u8,
  slot: u8,
  pad: padding(2),
});
export const policyStruct = struct('cs_policy', {
  verdict: u8,
  auth_type: u8,
  observed_verdict: u8,
  observed_auth_type: u8,
  rule: u32,
  observed_rule: u32,
});

export const authKeyStruct = struct('cs_auth_key', {
  local: u32,
  remote: u32,
  remote_node: u32,
  auth_type: u8,
  pad: padding(3),
});
/** cs_auth.flags: not a proof but its opposite. */
export const AUTH_REFUSED = 1;
export const authStruct = struct('cs_auth', { expires_ns: u64, epoch: u32, flags: u32 });

export const flowAuthKeyStruct = struct('cs_flow_auth_key', {
  local: addr,
  remote: addr,
  lport: u16,
  rport: u16,
  endpoint: u32,
  proto: u8,
  pad: padding(3),
});
/** cs_flow_auth.flags, set by the kernel: a flow was let through. */
export const AUTH_TAKEN = 2;
export const flowAuthStruct = struct('cs_flow_auth', {
  expires_ns: u64,
  epoch: u32,
  flags: u32,
  local: u32,
  remote: u32,
  remote_node: u32,
  pad: padding(4, 4),
});

export const flowKeyStruct = struct('cs_flow_key', {
  local: addr,
  remote: addr,
  lport: u16,
  rport: u16,
  ifindex: u32,
  proto: u8,
  pad: padding(3),
});
export const flowStruct = struct('cs_flow', {
  revision: u64,
  valid_until_ns: u64,
  last_ns: u64,
  remote_identity: u32,
  remote_node: u32,
  direction: u8,
  auth_type: u8,
  state: u8,
  flags: u8,
  origin: u16,
  endpoint: u16,
});

/** cs_flow.state, named as Linux's connection tracking does. */
export const FLOW_STATES = {
  NONE: 0,
  SYN_SENT: 1,
  SYN_RECV: 2,
  ESTABLISHED: 3,
  FIN_WAIT: 4,
  CLOSE_WAIT: 5,
  LAST_ACK: 6,
  TIME_WAIT: 7,
  CLOSE: 8,
  UDP_UNREPLIED: 9,
  UDP_REPLIED: 10,
  ECHO: 11,
  SCTP_CLOSED: 12,
  SCTP_COOKIE_WAIT: 13,
  SCTP_COOKIE_ECHOED: 14,
  SCTP_ESTABLISHED: 15,
  SCTP_SHUTDOWN_SENT: 16,
  SCTP_SHUTDOWN_RECD: 17,
  SCTP_SHUTDOWN_ACK_SENT: 18,
  SCTP_HEARTBEAT_SENT: 19,
} as const;

export const counterStruct = struct('cs_counter', { packets: u64, bytes: u64 });
export const pairKeyStruct = struct('cs_pair_key', {
  local: u32,
  remote: u32,
  reason: u8,
  direction: u8,
  pad: padding(2, 2),
});

export const EVENT_KINDS = { 1: 'vouch-miss', 2: 'auth-miss', 3: 'drop', 4: 'verdict', 5: 'observed' } as const;

export const eventStruct = struct('cs_event', {
  time_ns: u64,
  suppressed: u64,
  local: addr,
  remote: addr,
  local_identity: u32,
  remote_identity: u32,
  remote_node: u32,
  endpoint: u32,
  rule: u32,
  lport: u16,
  rport: u16,
  kind: u8,
  reason: u8,
  direction: u8,
  proto: u8,
  auth_type: u8,
  held: u8,
  length: u16,
});

/** Keys and values that are plain integers. */
export const u8Value = struct('u8', { n: u8 });
export const u32Key = struct('u32', { n: u32 });
export const u64Value = struct('u64', { n: u64 });

/** Every struct that stands in abi.h and here, for the test that compares both. */
export const allStructs = [
  configStruct,
  endpointStruct,
  fenceKeyStruct,
  hostExemptKeyStruct,
  addressStruct,
  ipcacheStruct,
  prefixKeyStruct,
  prefixStruct,
  classKeyStruct,
  classStruct,
  policyKeyStruct,
  policyStruct,
  authKeyStruct,
  authStruct,
  flowAuthKeyStruct,
  flowAuthStruct,
  flowKeyStruct,
  flowStruct,
  counterStruct,
  pairKeyStruct,
  eventStruct,
] as const;
