# smallkernel.sh - a small guest kernel from Debian's kernel source.  Debian's own kernels have 25 MB of text and
# data alone, too much for a dump to ship; this one is a tenth of that.

step_smallkernel() {
	need images
	local series tree=$OUT/img/smallkernel
	series=$(guest_release | cut -d. -f1,2)
	download "linux-source-$series"
	rm -rf "$tree"; mkdir "$tree"
	dpkg --fsys-tarfile "$CACHE/linux-source-${series}"_*.deb | tar -xO "./usr/src/linux-source-$series.tar.xz" |
		tar -xJ -C "$tree" --strip-components 1
	(
		cd "$tree"
		make -s tinyconfig
		scripts/kconfig/merge_config.sh -m .config "$here/smallkernel/config" > /dev/null
		make -s olddefconfig
		nice make -s -j"$(nproc)" LOCALVERSION=-small bzImage
	)
	cp "$tree/arch/x86/boot/bzImage" "$OUT/share/vmlinuz-sample"
	cp "$tree/vmlinux" "$OUT/img/debug/boot/vmlinux-$(cat "$tree/include/config/kernel.release")"
	small_guest_image
	rm -rf "$tree"
}

small_guest_image() {
	local dir=$OUT/img/guest-sample
	skeleton "$dir" "$here/guest/init"
	cp "$OUT/img/spin" "$dir/"
	pack "$dir" "$OUT/share/guest-sample.cpio.gz"
}
