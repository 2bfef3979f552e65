#!/bin/bash
# build.sh OUT [SERIES...] - takes the types of Debian's kernels and prints which of the members that the program needs
# each of them has.  Without series: all that Debian's archive offers.
#
#   CACHE=DIR    keeps the .deb files (default OUT/deb)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=kernels
. "$here/../common/steps.sh" "$1"; shift
. "$here/../common/packages.sh"

# blobs SERIES : the types of the newest kernel of a series
blobs() {
	local release tree=$OUT/run/$1
	[ -e "$OUT/done/$1" ] && return
	(
		apt_of "$1" > /dev/null
		release=$(release_of "$1")
		say "$1: ${release:-not in the archive}"
		[ -n "$release" ] || exit 0
		rm -rf "$tree"; mkdir -p "$tree"
		for package in $(packages_of "$release"); do
			download "$package"
			dpkg --fsys-tarfile "$CACHE/${package}"_*.deb | tar -x -C "$tree" --wildcards \
				'*/vmlinuz*' '*/kernel/arch/x86/kvm/*' 2> /dev/null || true
		done
		python3 "$here/blobs.py" "$tree" "$OUT/$release"
		rm -rf "$tree"
	)
	touch "$OUT/done/$1"
}

# What holds a kernel and its modules: one package, since 2026 two.
packages_of() {
	local parts
	parts=$(apt-cache depends "linux-image-$1" | awk '/Depends: linux-(binary|modules)-[0-9]/ { print $2 }')
	echo "${parts:-linux-image-$1}"
}

for series in ${*:-5.10 6.1 6.12 trixie sid}; do blobs "$series"; done
mapfile -t kernels < <(find "$OUT" -name vmlinux.btf -printf '%h\n' | sort -V)
python3 "$here/table.py" "$here/members.txt" "${kernels[@]}"
