#!/usr/bin/env bash
# In the guest: the tests that talk to the kernel, then the demonstration itself, on a kernel that has no tcx and has
# WireGuard of its own. Prints TAP lines. Two lanes first, as there are two CPUs; what connects against the clock runs alone.
set -u
echo "# kernel $(uname -r)"
if modprobe wireguard; then echo "ok - the kernel's WireGuard loads"; else echo "not ok - the kernel's WireGuard loads"; fi
sysctl -qw net.core.bpf_jit_enable=1
# Compiled code is kept: starting a process is what takes longest here. Workloads drop to other uids, which read it.
export COUNTERSIGN_SLOW_MACHINE=10 COUNTERSIGN_VM=1 CI=true NODE_COMPILE_CACHE=/tmp/compile-cache
node=node_modules/.bin/node
failed=0

# run NAME COMMAND…: its output, and a line of its own if it ended badly without saying so
run() {
  local name=$1 started=$SECONDS status
  shift
  "$@" 2>&1 | tee "/tmp/$name.tap"
  status=${PIPESTATUS[0]}
  if [ $status != 0 ]; then
    failed=1 # of a lane in the background its exit status says so
    grep -q '^not ok ' "/tmp/$name.tap" || echo "not ok - $name: ended with status $status"
  fi
  echo "# $name: $((SECONDS - started)) s"
  return $status
}
tests() { $node node_modules/vitest/vitest.mjs run --project "$1" --no-isolate --reporter=tap-flat "$2"; }

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
