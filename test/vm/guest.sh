#!/usr/bin/env bash
# In the guest: the tiers that talk to the kernel, on a kernel that has no tcx and has WireGuard of its own.
set -u
modprobe -q wireguard || echo "not ok - the kernel's WireGuard module loads"
sysctl -qw net.core.bpf_jit_enable=1
echo "# kernel $(uname -r)"
export COUNTERSIGN_SLOW_MACHINE=10 COUNTERSIGN_VM=1 CI=true
exec node_modules/.bin/node node_modules/vitest/vitest.mjs run --project bpf --project netns --reporter=tap-flat \
  test/bpf test/netns/datapath test/netns/wireguard
