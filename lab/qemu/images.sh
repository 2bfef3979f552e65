# images.sh - the guests' kernel and initramfs.

# The guests' kernel is the one built for virtual machines.
step_fetch() {
	need deps
	find_release
	sed -i 's/-amd64$/-cloud-amd64/' "$OUT/kernel"
	kernels "$(cat "$OUT/kernel")"
}

step_images() {
	need fetch
	local dir=$OUT/img/guest release
	release=$(cat "$OUT/kernel")
	gcc -O2 -static -nostdlib -fno-stack-protector -fcf-protection=none -fno-builtin -Wall \
		-o "$OUT/img/spin" "$here/../svm/guest/spin.c"
	skeleton "$dir" "$here/../svm/guest/init"
	cp "$OUT/img/spin" "$dir/"
	cp "$root/lib/modules/$release/kernel/drivers/firmware/qemu_fw_cfg.ko" "$dir/"
	pack "$dir" "$OUT/img/guest.cpio.gz"
	cp "$root/boot/vmlinuz-$release" "$OUT/img/vmlinuz"
}
