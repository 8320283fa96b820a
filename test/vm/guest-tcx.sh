#!/usr/bin/env bash
# In the guest: the kernel programs and the datapath between real stacks, on a kernel that has tcx, and SCTP, which is what
# the machine outside may lack. Prints TAP lines.
set -u
. "$(dirname "$0")/lib.sh"
load sctp "the kernel's SCTP"
run bpf tests bpf test/bpf >/tmp/lane &
run stacks tests netns test/netns/stacks SCTP
wait $! || failed=1
cat /tmp/lane
run datapath tests netns test/netns/datapath
exit $failed
