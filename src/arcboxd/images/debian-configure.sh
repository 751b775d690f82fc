#!/bin/sh
# Configures the packages of an image that were unpacked on a host of another architecture. Run in the image's
# root by a machine that is made for this alone (second-stage.sh).
#
# Under software emulation each program takes 10 to 30 ms to begin, so what would do nothing is left out.

set -eu
cd /
export PATH=/arcbox-setup/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DPKG_COLORS=never

# There is no service to start. Of a package that was never installed before there is nothing to mend, which
# is all that dpkg-maintscript-helper is for. The certificates are gathered once, at the end.
mkdir /arcbox-setup/bin
for program in invoke-rc.d start-stop-daemon dpkg-maintscript-helper update-ca-certificates; do
  printf '#!/bin/sh\nexit 0\n' >/arcbox-setup/bin/$program
  chmod 755 /arcbox-setup/bin/$program
done
# Else sshd's package makes keys, which no machine keeps.
mkdir -p /etc/ssh
touch /etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_ecdsa_key /etc/ssh/ssh_host_ed25519_key

echo "I: arcbox: preparing"
# base-passwd's makes the users whom the others name.
for name in base-passwd $(ls /arcbox-setup/preinst); do
  if [ -e "/arcbox-setup/preinst/$name" ]; then
    DPKG_MAINTSCRIPT_PACKAGE=$name DPKG_MAINTSCRIPT_NAME=preinst DPKG_ROOT='' \
      DPKG_ADMINDIR=/var/lib/dpkg "/arcbox-setup/preinst/$name" install
    rm "/arcbox-setup/preinst/$name"
  fi
done

echo "I: arcbox: configuring"
dpkg --force-unsafe-io --configure --pending
if [ -x /usr/sbin/update-ca-certificates ]; then /usr/sbin/update-ca-certificates; fi
