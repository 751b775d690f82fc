#!/bin/busybox sh
# The initramfs: from the kernel to the agent and the distribution's init. docs/architecture.md says
# what it promises to both.
#
# Under software emulation each exec of busybox costs 15 to 20 ms, so this uses builtins, mounts several
# filesystems with one `mount -a`, and lets insmod run inside the shell's own fork (with /proc mounted,
# Debian's static busybox runs its applets by name, without an exec).
# The modules' names come from /etc/boot.conf, in order of need.

/bin/busybox mount -a -T /etc/fstab.self
. /etc/boot.conf

gate_s=10 debug=
read -r cmdline </proc/cmdline
for word in $cmdline; do
  case $word in
  arcbox.gate_s=*) gate_s=${word#*=} ;;
  arcbox.debug) debug=1 ;;
  esac
done
case $gate_s in '' | *[!0-9]*) gate_s=10 ;; esac

mark() {
  if [ "$debug" ]; then
    read -r up _ </proc/uptime
    echo "arcbox: $up $1"
  fi
}

load() { for module; do insmod "/lib/$module.ko"; done; }

give_up() {
  echo "arcbox: $1"
  poweroff -f
}

mark init

# The quicker checksums need a processor that has them.
for module in $CHECKSUMS; do insmod "/lib/$module.ko" 2>/dev/null && break; done
# The root filesystem's modules on one processor, the disks' on another: 0.6 s instead of 1.0 s (T).
load $ROOT_MODULES &
load $DISK_MODULES
wait

tries=0
until [ -b "$LAST_DISK" ]; do
  tries=$((tries + 1))
  if [ $tries -gt 1000 ]; then
    [ -b /dev/vda ] || give_up "cannot mount the root disk: there is no /dev/vda"
    give_up "the modules or the agent disk is missing ($LAST_DISK)"
  fi
  usleep 20000
done
mark disks

if ! mount -a -T /etc/fstab.root 2>/run/errors; then
  # Either the root is no filesystem that we know, or it lacks directories to mount on.
  umount /new/run /new/sys /new/proc /new/dev /new 2>/dev/null
  mount -t ext4 -o "$ROOT_OPTIONS" /dev/vda /new ||
    give_up "cannot mount the root disk /dev/vda: it is damaged, or not ext4"
  mkdir -p /new/dev /new/proc /new/sys /new/run || give_up "cannot write to the root disk /dev/vda"
  umount /new
  mount -a -T /etc/fstab.root || give_up "cannot mount the root disk /dev/vda with its directories"
fi

mkdir -m 0700 /new/run/arcbox
mkdir /new/run/arcbox/bundle
mkfifo -m 0600 /new/run/arcbox/gate
# Opened for both, so that neither this open nor the agent's waits for the other.
exec 3<>/new/run/arcbox/gate
mount -t "$AGENT_FS" -o ro,nodev /dev/vdc /new/run/arcbox/bundle ||
  give_up "cannot mount the agent disk /dev/vdc"
mark mounted

bundle=/run/arcbox/bundle
chroot /new $bundle/bin/busybox sh $bundle/bin/start 3>&-
mark agent

load $NETWORK_MODULES
mark network

# For inits that mount nothing, images that have none, and who wants a terminal before init runs.
mkdir /new/dev/pts /new/dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /new/dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm /new/dev/shm

# What only the distribution needs comes after the agent's first answer, not in its way.
if [ "$gate_s" -gt 0 ]; then read -r -t "$gate_s" _ <&3; fi
mark gate

load $LATE_MODULES

# In the new root, so that its own symbolic links are followed: /lib, /sbin and what init is may be
# links with absolute targets.
chroot /new $bundle/bin/busybox sh -c '
  if mkdir -p "/lib/modules/$1"; then mount -t "$2" -o ro,nodev /dev/vdb "/lib/modules/$1"; fi
  for init in /sbin/init /lib/systemd/systemd /usr/lib/systemd/systemd /bin/init; do
    if [ -x $init ]; then break; fi
    init=/run/arcbox/bundle/bin/supervise
  done
  echo $init >/run/arcbox/init
' sh "$KERNEL_VERSION" "$MODULES_FS" 3>&-
read -r init </new/run/arcbox/init
mark modules

exec 3>&-
mark "now $init"
exec switch_root /new "${init:-/run/arcbox/bundle/bin/supervise}"
echo "arcbox: cannot start $init" # only if switch_root itself could not be run
poweroff -f
