#!/bin/sh
# The operating system under a model server where no container registry is in reach, as a tar file: the
# distribution that has the Python that is asked for. Without apt (variant essential), since nothing is
# installed in a running image. The same package versions give the same bytes: times are fixed, and what the
# host lends while packages are unpacked (its name, its resolver) and what logs the run is removed.
#
#   infra/images/base.sh 3.11|3.12|3.13 OUTPUT.tar
set -eu
SOURCE_DATE_EPOCH=0
export SOURCE_DATE_EPOCH
surplus=
case $1 in
    3.11)
        suite=bookworm
        # The full Perl that only the tool `usrmerge` needs.
        surplus='usrmerge perl perl-modules-5.36 libperl5.36 libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl'
        ;;
    3.12) suite=noble ;; # Ubuntu 24.04; no Debian has it
    3.13) suite=trixie ;;
    *)
        echo "error: no distribution with Python $1 is known here" >&2
        exit 1
        ;;
esac
exec mmdebstrap --quiet --variant=essential \
  --include=ca-certificates,libstdc++6,python3,usr-is-merged \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook="[ -z '$surplus' ] || chroot \"\$1\" dpkg --purge $surplus" \
  --customize-hook='rm -rf "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/apt/sources.list "$1"/var/log/*' \
  --customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/cache/debconf "$1"/var/cache/ldconfig "$1"/var/lib/apt' \
  "$suite" "$2"
