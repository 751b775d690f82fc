#!/bin/sh
# Builds a Debian root filesystem and packs it as an ext4 image. Run as root, or as root of a user
# namespace whose ids are the user's own and their subordinate ids; needs neither mounts of images nor
# device nodes.
#
# usage: debian-build.sh SUITE DEBIAN_ARCH WORK SOURCES PACKAGES VIRTUAL_BYTES native|foreign
#
# WORK is a directory with enough room; the result is WORK/root.img. Downloaded packages are kept in
# $ARCBOX_DEB_CACHE, so that a second build needs only what is new. The log is WORK/build.log.
# WORK/settings.sh is run on the finished system. The packages of a foreign architecture are only unpacked,
# since none of their programs runs here: the image then has /arcbox-setup, which a machine of that
# architecture runs (configure.sh).

set -eu
suite=$1 arch=$2 work=$3 sources=$4 packages=$5 bytes=$6 how=$7
cache=$ARCBOX_DEB_CACHE
tree=$work/tree
setup=$tree/arcbox-setup
export TMPDIR="$work" LC_ALL=C.UTF-8
PATH=$PATH:/usr/sbin:/sbin

# Documentation is left out of the image, but not of what its user installs later: the rule is removed
# again by the settings.
set -- --path-exclude='/usr/share/man/*' --path-exclude='/usr/share/doc/*' \
  --path-include='/usr/share/doc/*/copyright' \
  --path-exclude='/usr/share/locale/*' --path-include='/usr/share/locale/locale.alias' --force-unsafe-io

bootstrap() {
  mmdebstrap --mode=root --format=directory --architectures="$arch" --logfile="$work/build.log" \
    --aptopt='Acquire::Languages "none"' \
    --skip=download/empty --skip=essential/unlink \
    --setup-hook='mkdir -p "$1/var/cache/apt/archives"' \
    --setup-hook="sync-in '$cache' /var/cache/apt/archives" \
    "$@" --customize-hook="sync-out /var/cache/apt/archives '$cache'" \
    "$suite" "$tree" "$sources"
}

has_preinst() {
  dpkg-deb --ctrl-tarfile "$1" | tar --list | grep -qx ./preinst
}

case $how in
native)
  for option; do set -- "$@" --dpkgopt="${option#--}"; shift; done
  bootstrap --variant=minbase --include="$packages" "$@"
  ;;
foreign)
  # What mmdebstrap's "minbase" has, fetched only.
  wanted="'?essential' '?priority(required)' apt $(echo "$packages" | tr , ' ')"
  apt="APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG apt-get -qq --yes"
  bootstrap --variant=custom --skip=check/qemu --skip=cleanup/apt \
    --customize-hook="$apt --download-only install $wanted" \
    --customize-hook="$apt --simulate install $wanted >'$work/simulated'"
  echo "I: arcbox: unpacking" >>"$work/build.log"
  mkdir -p "$setup/preinst" "$work/unpack"
  cp "$work/configure.sh" "$work/settings.sh" "$setup"
  # The cache may have others besides.
  sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) [^)]*\[\([^]]*\)\]).*/\1 \2 \3/p' "$work/simulated" >"$work/chosen"
  while read -r name version of; do
    deb=$tree/var/cache/apt/archives/${name}_$(echo "$version" | sed 's/:/%3a/g')_$of.deb
    if has_preinst "$deb"; then
      # dpkg would run it: it is kept beside instead.
      dpkg-deb --raw-extract "$deb" "$work/package"
      mv "$work/package/DEBIAN/preinst" "$setup/preinst/$name"
      chmod 755 "$setup/preinst/$name"
      dpkg-deb -Znone --build "$work/package" "$work/unpack/" >/dev/null
      rm -r "$work/package"
    else
      mv "$deb" "$work/unpack"
    fi
  done <"$work/chosen"
  rm -r "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
  for folder in bin sbin lib; do
    if [ ! -e "$tree/$folder" ]; then
      mkdir -p "$tree/usr/$folder"
      ln -s "usr/$folder" "$tree/$folder"
    fi
  done
  dpkg --root="$tree" "$@" --force-depends --no-triggers --unpack "$work"/unpack/*.deb >>"$work/build.log" 2>&1
  rm -f "$tree/var/lib/dpkg/arch" # of this host's dpkg
  rm -r "$work/unpack"
  ;;
esac

if [ "$how" = native ]; then
  echo "I: arcbox: settings" >>"$work/build.log"
  (cd "$tree" && sh -eu "$work/settings.sh")
fi

echo "I: arcbox: packing" >>"$work/build.log"
cd "$work"
# Grown online to as much as ext4 holds: the kernel goes on with meta_bg when the room reserved for
# group descriptors is used up.
truncate -s "$bytes" root.img
mke2fs -q -F -t ext4 -L root -m 1 -b 4096 -i 16384 -J size=64 \
  -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$tree" root.img
rm -rf "$tree"
