#!/bin/sh
# Installs the Debian packages that building and testing need and that are
# missing. Does nothing, in a few milliseconds, when none is.
set -eu

packages='
	ca-certificates
	erofs-utils
	fish
	fuse3
	gcc
	libc6-dev
	mmdebstrap
	runc
	shellcheck
	skopeo
	umoci
	xfsprogs
	zsh
'
# ca-certificates: modules over HTTPS    erofs-utils: fsck.erofs checks ours
# fuse3: mounting as an ordinary user    gcc, libc6-dev: the race detector
# mmdebstrap: real images                runc: containerd's tasks
# skopeo: archives as others write them  fish, zsh: their completion
# umoci: unpacks what we compare with    shellcheck: make lint
# xfsprogs: a file system that shares blocks

# dpkg-query fails if it does not know one of them, which is no failure here.
# shellcheck disable=SC2086  # one word for each package
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $packages 2>/dev/null |
	sed -n 's/ installed$//p') || true
missing=
for package in $packages; do
	case "
$installed
" in
	*"
$package
"*) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
if [ "$(id -u)" -ne 0 ]; then
	echo "Debian packages are missing. As root: apt-get update && $install" >&2
	exit 1
fi
echo "Installing Debian packages that are missing:$missing"
export DEBIAN_FRONTEND=noninteractive

# Without package lists, or with old ones, apt cannot find a package.
if ! $install --simulate >/dev/null 2>&1; then
	apt-get update -o Acquire::Retries=3 >/dev/null || true
fi
for try in 1 2 3; do
	$install -o Acquire::Retries=3 >/dev/null && exit 0
	echo "Try $try of 3 failed." >&2
	sleep "$try"
	apt-get update -o Acquire::Retries=3 >/dev/null || true
done
exit 1
