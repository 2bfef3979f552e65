# packages.sh - kernels, their debug symbols, and the few programs of the initramfs; from Debian's archive, unpacked
# into OUT/img and never installed.

. "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

root=$OUT/img/root

# The release of Debian that has the kernels of a series, if it is not this machine's.  Its name is that of its series too.
debian_of() { # debian_of SERIES
	case $1 in
	5.10) echo bullseye;;
	trixie|sid) echo "$1";;
	esac
}

# apt_of SERIES : from here on, apt is that of the release that has these kernels
apt_of() {
	local debian
	debian=$(debian_of "$1")
	if [ -n "$debian" ]; then private_apt "$OUT/$debian" "$debian"; else apt-get update -q; fi
}

# The kernel release that a series stands for: the newest one that the archive offers.
release_of() { # release_of SERIES
	if [ -z "$1" ] || [ "$1" = "$(debian_of "$1")" ]; then
		apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print substr($2, 13); exit }'
	else
		apt-cache pkgnames "linux-image-$1." |
			sed -n "s/^linux-image-\(${1//./\\.}\.[0-9.]*\(+deb[0-9]*\|-[0-9]*\)\?-amd64\)\$/\1/p" |
			sort -V | tail -1
	fi
}

download() {
	local package
	for package; do
		compgen -G "$CACHE/${package}_*.deb" >/dev/null ||
			(cd "$CACHE" && apt-get -o APT::Sandbox::User=root download -q "$package")
	done
}

# unpack PACKAGE... : fetched, into OUT/img/root
unpack() {
	local package
	download "$@"
	for package; do
		dpkg -x "$CACHE/${package}"_*.deb "$root"
	done
}

# vmlinux and the KVM modules with DWARF: for the readers that judge the results, never for extraction.
unpack_debug() {
	download "linux-image-$1-dbg"
	dpkg --fsys-tarfile "$CACHE/linux-image-$1-dbg"_*.deb |
		tar -x -C "$OUT/img" --wildcards --transform 's,^\./usr/lib/,,;s,^debug/usr/lib/,debug/lib/,' \
			'./usr/lib/debug/boot/vmlinux-*' '*/lib/modules/*/kernel/arch/x86/kvm/*'
}

# kernels RELEASE... : with modules, and debug symbols; and the programs of the initramfs
kernels() {
	local release
	unpack busybox-static kmod
	ln -sf kmod "$root/bin/depmod"; ln -sf kmod "$root/bin/modprobe"
	for release; do
		unpack "linux-image-$release"
		unpack_debug "$release"
		find "$root/lib/modules/$release" -name '*.ko.xz' -exec unxz -f {} +
		"$root/bin/depmod" -b "$root" "$release"
	done
}

# Looks up the host's release once, and keeps it in OUT/kernel.
find_release() {
	local release
	release=$(apt_of "$KERNEL" > /dev/null; release_of "$KERNEL")
	[ -n "$release" ] || { echo "no kernel '$KERNEL' in the archive" >&2; exit 1; }
	echo "$release" > "$OUT/kernel"
}
