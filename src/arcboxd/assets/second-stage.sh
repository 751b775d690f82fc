#!/bin/busybox sh
# An initramfs that finishes the image on /dev/vda, whose packages were unpacked on a host of another
# architecture (images/debian-build.sh), and powers off. Its last word says whether all went well.

/bin/busybox mount -a -T /etc/fstab.self
. /etc/boot.conf

for module in $CHECKSUMS; do insmod "/lib/$module.ko" 2>/dev/null && break; done
for module in $ROOT_MODULES $DISK_MODULES; do insmod "/lib/$module.ko"; done

finish() {
  tries=0
  until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -le 1000 ] || return 1
    usleep 20000
  done
  mount -t ext4 -o "$ROOT_OPTIONS" /dev/vda /new || return 1
  mount -t devtmpfs dev /new/dev && mount -t proc proc /new/proc && mount -t sysfs sys /new/sys || return 1
  mkdir -p /new/dev/pts && mount -t devpts pts /new/dev/pts || return 1
  chroot /new /bin/sh -eu /arcbox-setup/configure.sh || return 1
  # The settings leave nothing in /dev.
  umount /new/dev/pts /new/dev /new/proc /new/sys || return 1
  chroot /new /bin/sh -eu /arcbox-setup/settings.sh || return 1
  rm -r /new/arcbox-setup
  umount /new
}

if finish; then echo "I: arcbox: finished"; else echo "E: arcbox: not finished"; fi
poweroff -f
