#!/usr/bin/env bash
# In the guest: the tests that talk to the kernel, then the demonstration itself, on a kernel that has no tcx and has
# WireGuard of its own. Prints TAP lines. Two lanes first, as there are two CPUs; what connects against the clock runs alone.
set -u
. "$(dirname "$0")/lib.sh"
load wireguard "the kernel's WireGuard"

# Each process of the demonstration, once to its first error: what it imports is compiled while there is a CPU to spare.
compile() {
  for program in 'src/cli/main.ts status --socket /none' 'src/cli/main.ts server run --config /none' \
    'src/cli/main.ts agent run --config /none' 'test/stage/programs/fetch-svid.ts 0 /none /none' \
    'src/cli/main.ts audit verify /none' 'test/netns/support/datapath-host.ts {}'; do
    # shellcheck disable=SC2086
    $node $program
  done >/dev/null 2>&1
}

run bpf tests bpf test/bpf >/tmp/lane &
compile
run wireguard tests netns test/netns/wireguard
wait $! || failed=1
cat /tmp/lane
run datapath tests netns test/netns/datapath
run demo $node test/vm/demo-tap.ts
exit $failed
