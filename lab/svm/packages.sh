# packages.sh - the kernels, their debug symbols, and the few programs of the initramfs; from Debian's archive,
# unpacked into OUT/img and never installed.

# The kernel release that the series KERNEL stands for: the newest one that the archive offers.
host_release() {
	if [ -z "$KERNEL" ]; then
		apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print substr($2, 13); exit }'
	else
		apt-cache pkgnames "linux-image-$KERNEL." |
			sed -n "s/^linux-image-\(${KERNEL//./\\.}\.[0-9.]*\(+deb[0-9]*\)\?-amd64\)\$/\1/p" | sort -V | tail -1
	fi
}

# The release of guest g2: the same source, built for virtual machines.
cloud_release() { echo "${1%-amd64}-cloud-amd64"; }

download() {
	local package
	for package; do
		compgen -G "$CACHE/${package}_*.deb" >/dev/null ||
			(cd "$CACHE" && apt-get -o APT::Sandbox::User=root download -q "$package")
	done
}

# vmlinux and the KVM modules with DWARF: for the readers that judge the results, never for extraction.
unpack_debug() {
	dpkg --fsys-tarfile "$CACHE/linux-image-$1-dbg"_*.deb |
		tar -x -C "$OUT/img" --wildcards --transform 's,^\./usr/lib/,,;s,^debug/usr/lib/,debug/lib/,' \
			'./usr/lib/debug/boot/vmlinux-*' '*/lib/modules/*/kernel/arch/x86/kvm/*'
}

step_fetch() {
	need deps
	apt-get update -q
	local release cloud package
	release=$(host_release)
	[ -n "$release" ] || { echo "no kernel '$KERNEL' in the archive" >&2; exit 1; }
	cloud=$(cloud_release "$release")
	echo "$release" > "$OUT/kernel"
	download linux-image-{"$release","$cloud"}{,-dbg} busybox-static kmod
	for package in "linux-image-$release" "linux-image-$cloud" busybox-static kmod; do
		dpkg -x "$CACHE/${package}"_*.deb "$OUT/img/root"
	done
	for release in "$release" "$cloud"; do
		unpack_debug "$release"
		find "$OUT/img/root/lib/modules/$release" -name '*.ko.xz' -exec unxz -f {} +
		ln -sf kmod "$OUT/img/root/bin/depmod"; ln -sf kmod "$OUT/img/root/bin/modprobe"
		"$OUT/img/root/bin/depmod" -b "$OUT/img/root" "$release"
	done
}
