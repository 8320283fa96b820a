# Sourced by the guests' scripts: how a test is run there. `failed` is 1 once one ended badly.
echo "# kernel $(uname -r)"
sysctl -qw net.core.bpf_jit_enable=1
# Compiled code is kept: starting a process is what takes longest here. Workloads drop to other uids, which read it.
export COUNTERSIGN_SLOW_MACHINE=10 COUNTERSIGN_VM=1 CI=true NODE_COMPILE_CACHE=/tmp/compile-cache
node=node_modules/.bin/node
failed=0

# load MODULE WHAT: a kernel module that Debian's kernel has and the tests need
load() {
  if modprobe "$1"; then echo "ok - $2 loads"; else
    failed=1
    echo "not ok - $2 loads"
  fi
}

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

# tests PROJECT PATH [FILTER]
tests() {
  $node node_modules/vitest/vitest.mjs run --project "$1" --no-isolate --reporter=tap-flat "$2" ${3:+-t "$3"}
}
