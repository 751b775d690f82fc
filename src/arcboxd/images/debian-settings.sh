#!/bin/sh
# Turns a freshly installed Debian into what machines start from. Run in its root directory, as root of the
# host's namespace or of a machine's.

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
for unit in getty@tty1.service serial-getty@ttyS0.service serial-getty@ttyAMA0.service systemd-pstore.service \
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
