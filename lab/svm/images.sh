# images.sh - initramfs images: the host's, the guests' and the crash kernel's.

guest_image() { # guest_image NAME RELEASE
	local dir=$OUT/img/guest-$1
	skeleton "$dir" "$here/guest/init"
	cp "$OUT/img/spin" "$dir/"
	cp "$root/lib/modules/$2/kernel/drivers/firmware/qemu_fw_cfg.ko" "$dir/"
	pack "$dir" "$OUT/share/guest-$1.cpio.gz"
	cp "$root/boot/vmlinuz-$2" "$OUT/share/vmlinuz-$1"
}

host_image() { # host_image RELEASE
	local dir=$OUT/img/host
	skeleton "$dir" "$here/host/init"
	modules "$dir" "$1" kvm_amd virtio_pci virtio_blk 9pnet_virtio 9p qemu_fw_cfg \
		zram lzo lzo-rle lz4 lz4hc zstd deflate $(known_modules "$1" zsmalloc z3fold)
	programs "$dir" "$(command -v qemu-system-x86_64)" "$(command -v kexec)"
	cp "$OUT/img/vmm" "$dir/tools/"
	mkdir "$dir/tools/firmware"
	cp -L /usr/share/seabios/bios-256k.bin /usr/share/qemu/{kvmvapic,linuxboot_dma}.bin "$dir/tools/firmware/"
	pack "$dir" "$OUT/img/host.cpio.gz"
	cp "$root/boot/vmlinuz-$1" "$OUT/img/vmlinuz"
}

# The crash kernel has makedumpfile of Debian 13, with its libraries: Debian 12's does not know 6.12's page flags.
kdump_image() { # kdump_image RELEASE
	local dir=$OUT/img/kdump libs=$OUT/tools/root/usr/lib/x86_64-linux-gnu lib
	skeleton "$dir" "$here/kdump/init"
	modules "$dir" "$1" virtio_pci 9pnet_virtio 9p
	mkdir -p "$dir/tools/lib"
	cp "$OUT/tools/root/usr/bin/makedumpfile" /usr/bin/time "$dir/tools/"
	for lib in $("$libs/ld-linux-x86-64.so.2" --library-path "$libs" --list "$dir/tools/makedumpfile" |
		awk '$3 ~ /^\// { print $3 }'); do
		cp -L "$lib" "$dir/tools/lib/"
	done
	cp -L "$libs/ld-linux-x86-64.so.2" "$dir/lib64/"
	program_under_test "$dir"
	pack "$dir" "$OUT/share/kdump.cpio.gz"
}

under_test=$(realpath -m "${VMCORE_SPLIT:-$here/../../.build/release/vmcore-split}")

# program_under_test DIR : vmcore-split, if it is built, as it would be installed, with the hook that runs it.  Its
# libraries and their dynamic linker are this machine's.
program_under_test() {
	local dir=$1/tools/split interpreter
	if [ ! -x "$under_test" ]; then
		say "no $under_test: the capture kernel goes without it"
		return
	fi
	mkdir -p "$dir/lib"
	install -s -m 755 "$under_test" "$dir/program"
	cp "$here/../../contrib/kdump/save-guests" "$dir/"
	interpreter=$(ldd "$under_test" 2> /dev/null | awk '$1 ~ /^\/.*ld-linux/ { print $1 }') || true
	if [ -n "$interpreter" ]; then
		ldd "$under_test" | awk '$3 ~ /^\// { print $3 }' | xargs -I{} cp -L {} "$dir/lib/"
		cp -L "$interpreter" "$dir/lib/ld.so"
	fi
}

# Debian 13's QEMU for the host, which runs it by its own dynamic linker.
vmm_on_share() {
	local r=$OUT/qemu13/root dir=$OUT/share/qemu13 libs lib
	libs=$r/usr/lib/x86_64-linux-gnu
	rm -rf "$dir"; mkdir -p "$dir"/{lib,firmware}
	cp "$r/usr/bin/qemu-system-x86_64" "$dir/"
	for lib in $("$libs/ld-linux-x86-64.so.2" --library-path "$libs" --list "$dir/qemu-system-x86_64" |
		awk '$3 ~ /^\// { print $3 }'); do
		cp -L "$lib" "$dir/lib/"
	done
	cp -L "$libs/ld-linux-x86-64.so.2" "$dir/lib/"
	cp -L "$r/usr/share/seabios/bios-256k.bin" "$r"/usr/share/qemu/{kvmvapic,linuxboot_dma}.bin "$dir/firmware/"
}

step_images() {
	need fetch
	need tools
	local guest
	guest=$(guest_release)
	gcc -O2 -static -nostdlib -fno-stack-protector -fcf-protection=none -fno-builtin -Wall \
		-o "$OUT/img/spin" "$here/guest/spin.c"
	gcc -O2 -Wall -static -o "$OUT/img/vmm" "$here"/../vmm/*.[cS] -lpthread
	# Entered by the lab's own VMM, which has no boot loader: unpacked, and relocated to where KASLR might put it.
	python3 "$here/../vmm/guestkernel.py" "$root/boot/vmlinuz-$guest" 0x1b600000 "$OUT/share/guest.kernel"
	guest_image host "$guest"
	guest_image cloud "$(cloud_release "$guest")"
	host_image "$(cat "$OUT/kernel")"
}
