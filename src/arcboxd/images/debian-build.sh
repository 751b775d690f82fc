#!/bin/sh
# Builds a Debian root filesystem and packs it as an ext4 image. Run as root, or as root of a user
# namespace whose ids are the user's own and their subordinate ids; needs neither mounts of images nor
# device nodes.
#
# usage: debian-build.sh SUITE DEBIAN_ARCH WORK SOURCES PACKAGES VIRTUAL_BYTES
#
# WORK is a directory with enough room; the result is WORK/root.img. Downloaded packages are kept in
# $ARCBOX_DEB_CACHE, so that a second build needs only what is new. The log is WORK/build.log.

set -eu
suite=$1 arch=$2 work=$3 sources=$4 packages=$5 bytes=$6
cache=$ARCBOX_DEB_CACHE
tree=$work/tree
export TMPDIR="$work" LC_ALL=C.UTF-8
PATH=$PATH:/usr/sbin:/sbin

# Documentation is left out of the image, but not of what its user installs later: the rule is removed
# again below.
mmdebstrap --mode=root --variant=minbase --format=directory --architectures="$arch" \
  --include="$packages" --logfile="$work/build.log" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-include=/usr/share/locale/locale.alias' \
  --dpkgopt=force-unsafe-io \
  --aptopt='Acquire::Languages "none"' \
  --skip=download/empty --skip=essential/unlink \
  --setup-hook='mkdir -p "$1/var/cache/apt/archives"' \
  --setup-hook="sync-in '$cache' /var/cache/apt/archives" \
  --customize-hook="sync-out /var/cache/apt/archives '$cache'" \
  "$suite" "$tree" "$sources"

cd "$tree"
echo "I: arcbox: settings" >>"$work/build.log"

rm -f etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/apt/apt.conf.d/99mmdebstrap etc/ssh/ssh_host_*
rm -rf var/lib/apt/lists/* var/cache/apt/* var/log/* tmp/* run/* dev/*
mkdir -p var/lib/apt/lists/partial var/cache/apt/archives/partial var/log/journal
chmod 2755 var/log/journal
: >etc/machine-id
rm -f var/lib/dbus/machine-id

echo debian >etc/hostname
cat >etc/hosts <<'END'
127.0.0.1 localhost
127.0.1.1 debian
::1 localhost ip6-localhost ip6-loopback
END
rm -f etc/resolv.conf
echo 'nameserver 10.0.2.3' >etc/resolv.conf
echo '# The root is mounted before init, by arcbox.' >etc/fstab
echo 'LANG=C.UTF-8' >etc/default/locale
chroot . passwd --quiet --lock root

# What a machine never needs and what costs seconds of its start under software emulation. Masked where
# nothing can want it (there is no display, no EFI, no virtual terminal); else only not enabled.
for unit in getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service \
  modprobe@drm.service modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service e2scrub_reap.service systemd-udev-settle.service \
  systemd-networkd-wait-online.service; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer \
  fstrim.timer systemd-timesyncd.service systemd-networkd.service rsync.service; do
  find etc/systemd/system -path "*.wants/$unit" -delete
done
# sshd checks its settings when it starts; doing so twice costs seconds here.
mkdir -p etc/systemd/system/ssh.service.d
printf '[Service]\nExecStartPre=\n' >etc/systemd/system/ssh.service.d/arcbox.conf
# The agent configures eth0 before udev comes; it keeps its name.
ln -sf /dev/null etc/systemd/network/99-default.link
mkdir -p etc/systemd/system-generators
for generator in bless-boot cryptsetup gpt-auto hibernate-resume integritysetup veritysetup getty; do
  ln -sf /dev/null "etc/systemd/system-generators/systemd-$generator-generator"
done

echo "I: arcbox: packing" >>"$work/build.log"
cd "$work"
# Grown online to as much as ext4 holds: the kernel goes on with meta_bg when the room reserved for
# group descriptors is used up.
truncate -s "$bytes" root.img
mke2fs -q -F -t ext4 -L root -m 1 -b 4096 -i 16384 -J size=64 \
  -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$tree" root.img
rm -rf "$tree"
