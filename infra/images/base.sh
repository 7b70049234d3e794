#!/bin/sh
# The operating system under a model server where no container registry is in reach: Debian bookworm with
# Python 3.11, as a tar file. Without apt (variant essential), since nothing is installed in a running image.
# The full Perl that only the tool `usrmerge` needs goes again. The same package versions give the same bytes: times are fixed, and what the host lends while packages
# are unpacked (its name, its resolver) and what logs the run is removed.
#
#   infra/images/base.sh OUTPUT.tar
set -eu
SOURCE_DATE_EPOCH=0
export SOURCE_DATE_EPOCH
exec mmdebstrap --quiet --variant=essential \
  --include=ca-certificates,libstdc++6,python3,usr-is-merged \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='chroot "$1" dpkg --purge usrmerge perl perl-modules-5.36 libperl5.36 libfile-find-rule-perl \
    libnumber-compare-perl libtext-glob-perl' \
  --customize-hook='rm -rf "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/apt/sources.list "$1"/var/log/*' \
  --customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/cache/debconf "$1"/var/cache/ldconfig "$1"/var/lib/apt' \
  bookworm "$1"
