#!/bin/sh
# Installs the Debian packages that the end-to-end tests need: those named as
# arguments, or all that are missing. No service is started, nothing else on the
# machine is changed. Needs root.
set -eu

if [ $# -eq 0 ]; then
	for pair in containerd:containerd docker.io:dockerd runc:runc podman:podman skopeo:skopeo nginx:nginx \
		btrfs-progs:mkfs.btrfs e2fsprogs:mkfs.ext4 xfsprogs:mkfs.xfs; do
		command -v "${pair#*:}" >/dev/null || set -- "$@" "${pair%%:*}"
	done
	[ $# -gt 0 ] || exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "missing packages: $*; run as root: $0" >&2
	exit 1
fi

# Installation scripts ask this file whether they may start their service.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT INT TERM
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "$@"
