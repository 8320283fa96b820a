#!/usr/bin/env bash
# boot.sh KERNEL_PACKAGE SCRIPT [ARG…]: boots a Debian kernel in QEMU over this machine's root file system (9p, read only,
# with a tmpfs on top), runs SCRIPT in the guest as root, streams what it prints, exits with its status.
#   KERNEL_PACKAGE  a meta package such as linux-image-amd64: what it depends on is downloaded and unpacked, not installed
# Environment: VM_CACHE (kernels, initramfs), VM_MEMORY (MiB), VM_TIMEOUT (s), VM_APPEND (kernel arguments)
# Emulated (TCG): about ten times slower than the machine. It shows that things work, never how fast.
set -euo pipefail
package=$1 script=$(readlink -f "$2") here=$(dirname "$(readlink -f "$0")")
shift 2
cache=${VM_CACHE:?} memory=${VM_MEMORY:-2048} limit=${VM_TIMEOUT:-600}
mkdir -p "$cache"

image=$(apt-cache depends "$package" | awk '/Depends: linux-image-[0-9]/{print $2; exit}')
[ -n "$image" ] || { echo "boot.sh: $package names no kernel here: apt-get update, and is this Debian?" >&2; exit 125; }
release=${image#linux-image-}
kernel=$cache/$image
if [ ! -e "$kernel/boot/vmlinuz-$release" ]; then
  mkdir -p "$kernel"
  (cd "$cache" && apt-get -q -o APT::Sandbox::User=root download "$image" >&2)
  dpkg -x "$(ls -t "$cache/$image"_*.deb | head -1)" "$kernel"
  rm -f "$cache/$image"_*.deb
  depmod -b "$kernel" "$release"
fi

# --- initramfs: just enough to mount this machine's root ---
initramfs=$cache/initramfs-$release.cpio
if [ ! -e "$initramfs" ] || [ "$0" -nt "$initramfs" ]; then
  tree=$(mktemp -d)
  mkdir -p "$tree"/{bin,modules,proc,sys,dev,lower,upper,root}
  cp "$(command -v busybox)" "$tree/bin/busybox"
  for module in virtio_pci virtio_mmio virtio_console 9pnet_virtio 9p overlay; do
    modprobe -S "$release" -d "$kernel" --show-depends "$module" 2>/dev/null | awk '$1=="insmod"{print $2}' | while read -r file; do
      name=$(basename "$file" .xz)
      [ -e "$tree/modules/$name" ] && continue
      case $file in *.xz) xz -dc "$file" >"$tree/modules/$name" ;; *) cp "$file" "$tree/modules/$name" ;; esac
      echo "$name" >>"$tree/modules/order"
    done
  done
  cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
for m in $($b cat /modules/order); do $b insmod /modules/$m; done
o=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,$o,cache=loose hostroot /lower || $b poweroff -f
$b mount -t tmpfs -o size=75% upper /upper; $b mkdir /upper/u /upper/w
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w overlay /root || $b poweroff -f
$b mkdir -p /root/vm; $b mount -t 9p -o $o,cache=none out /root/vm || $b poweroff -f
for d in proc sys dev; do $b mount --move /$d /root/$d; done
$b cp /guest-init /root/.guest-init
exec $b switch_root /root /.guest-init
INIT
  cat >"$tree/guest-init" <<'INIT'
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
. /vm/job
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run; mkdir -p /run/netns
mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
mkdir -p "/lib/modules/$(uname -r)" && mount --bind "$JOB_MODULES" "/lib/modules/$(uname -r)"
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sfn "${link#*:}" "/dev/${link%%:*}"; done
hostname guest; ip link set dev lo up; modprobe -q tun
for _ in $(seq 50); do [ -e /dev/vport0p1 ] || [ -e /dev/vport1p1 ] && break; sleep 0.1; done
out=$(ls /dev/vport*p1 | head -1)
cd "$JOB_DIRECTORY"
setsid bash "$JOB_SCRIPT" "${JOB_ARGUMENTS[@]}" </dev/null >"$out" 2>&1
echo $? >/vm/status
echo o >/proc/sysrq-trigger
sleep 5
INIT
  chmod +x "$tree/init" "$tree/guest-init"
  (cd "$tree" && find . | cpio -o -H newc --quiet) >"$initramfs.new"
  mv "$initramfs.new" "$initramfs"
  rm -rf "$tree"
fi

# The kernel measures the time stamp counter against the emulated PIT. On a busy host that fails, and without a clock it hangs
# before its first line. tsc=reliable: all emulated CPUs read the host's counter; else its clock ticks every 4 ms.
[ "$cache/tsc-khz" -nt "$here/tsc-khz.cc" ] || g++ -O1 -o "$cache/tsc-khz" "$here/tsc-khz.cc"
clock="tsc_early_khz=$("$cache/tsc-khz") tsc=reliable"

# --- run ---
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/out"
{
  printf 'JOB_MODULES=%q\nJOB_DIRECTORY=%q\nJOB_SCRIPT=%q\n' "$kernel/lib/modules/$release" "$PWD" "$script"
  printf 'JOB_ARGUMENTS=('; [ $# -gt 0 ] && printf '%q ' "$@"; printf ')\n'
} >"$work/out/job"
# A fifo held open both ways as stdin: an end of file there would close the guest's output port.
mkfifo "$work/in"
exec 3<>"$work/in"
code=0
timeout -k 5 "$limit" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
  -M microvm -accel tcg,thread=multi -cpu max,la57=off -smp 2 -m "$memory" \
  -kernel "$kernel/boot/vmlinuz-$release" -initrd "$initramfs" \
  -append "console=ttyS0 quiet panic=-1 reboot=t oops=panic mitigations=off random.trust_cpu=on $clock ${VM_APPEND:-}" \
  -chardev "file,id=console,path=$work/console.log" -serial chardev:console \
  -chardev stdio,id=out,signal=off -device virtio-serial-device -device virtserialport,chardev=out,name=out \
  -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-device,fsdev=root,mount_tag=hostroot \
  -fsdev "local,id=out9,path=$work/out,security_model=none" -device virtio-9p-device,fsdev=out9,mount_tag=out \
  -device virtio-rng-device <&3 | cat || code=${PIPESTATUS[0]}
if [ -s "$work/out/status" ]; then exit "$(cat "$work/out/status")"; fi
echo "boot.sh: the guest ended without a status (qemu: $code); its console ended with:" >&2
tail -n 30 "$work/console.log" >&2 || true
[ "$code" = 124 ] && exit 124
exit 125
