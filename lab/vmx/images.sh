# images.sh - what the host boots from: a CD with the kernel and an initramfs, in which all else lies.

# Where the guest's kernel believes to be (its KASLR): relocated here, as it would take minutes there.
guest_slide=0x1b600000

# The module is built in a copy: its folder stays as it is in the repository.  Headers of another Debian ask for that
# one's compiler.
module() { # module RELEASE
	local copy=$OUT/img/vmcsinfo
	rm -rf "$copy"; mkdir "$copy"
	cp "$here"/../../kmod/vmcsinfo/{Kbuild,Makefile,*.[ch]} "$copy/"
	make -s -C "$root/usr/src/linux-headers-$1" M="$copy" CC=gcc modules > "$copy.log" 2>&1 || { tail "$copy.log"; exit 1; }
}

# What comes behind the host's initramfs where the Linux guest is a hypervisor itself.
nested_image() { # nested_image GUEST RELEASE
	local dir=$OUT/img/nested
	modules "$1" "$2" kvm_intel
	cp "$OUT/img/vmm" "$1/"
	rm -rf "$dir"; mkdir -p "$dir/guest"
	pack "$1" "$dir/guest/guest.cpio.gz"
	pack "$dir" "$OUT/img/nested.cpio.gz"
}

guest_image() { # guest_image RELEASE
	local dir=$OUT/img/guest
	skeleton "$dir" "$here/guest/init"
	mkdir "$dir/dev"; mknod "$dir/dev/console" c 5 1
	pack "$dir" "$OUT/img/guest.cpio.gz"
	nested_image "$dir" "$1"
	python3 "$here/../vmm/guestkernel.py" "$root/boot/vmlinuz-$1" "$guest_slide" "$OUT/img/guest.kernel"
}

crash_image() {
	local dir=$OUT/img/crash
	skeleton "$dir" "$here/crash/init"
	mkdir "$dir/dev"; mknod "$dir/dev/console" c 5 1
	pack "$dir" "$OUT/img/crash.cpio.gz"
}

host_image() { # host_image RELEASE
	local dir=$OUT/img/host
	skeleton "$dir" "$here/host/init"
	mkdir "$dir/dev" "$dir/guest" "$dir/crash"; mknod "$dir/dev/console" c 5 1
	modules "$dir" "$1" kvm_intel
	programs "$dir" "$(command -v kexec)"
	cp "$OUT/img/vmm" "$OUT/img/vmcsinfo/vmcsinfo.ko" "$dir/"
	cp "$OUT/img/guest.cpio.gz" "$OUT/img/guest.kernel" "$OUT/img/guest.kernel.entry" "$dir/guest/"
	cp "$OUT/img/crash.cpio.gz" "$dir/crash/"
	cp "$root/boot/vmlinuz-$1" "$dir/crash/vmlinuz"
	pack "$dir" "$OUT/img/host.cpio.gz"
}

# disc FOLDER ARGUMENT... : FOLDER/boot.iso, which boots the host with these kernel arguments, and with what the caller set
# as `extra` behind its initramfs
disc() {
	local tree=$1/disc iso=$1/boot.iso
	shift
	rm -rf "$tree"; mkdir -p "$tree/isolinux"
	cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$tree/isolinux/"
	cp "$root/boot/vmlinuz-$(cat "$OUT/kernel")" "$tree/linux"
	cat "$OUT/img/host.cpio.gz" ${extra:-} > "$tree/initrd"
	printf 'default l\nprompt 0\ntimeout 0\nlabel l\n kernel /linux\n append initrd=/initrd %s\n' "$*" \
		> "$tree/isolinux/isolinux.cfg"
	xorriso -as mkisofs -quiet -o "$iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
		-no-emul-boot -boot-load-size 4 -boot-info-table "$tree" 2> "$iso.log" || { cat "$iso.log"; return 1; }
	rm -rf "$tree"
}

step_images() {
	need fetch
	need tools
	local release
	release=$(cat "$OUT/kernel")
	gcc -O2 -Wall -static -o "$OUT/img/vmm" "$here"/../vmm/*.[cS] -lpthread
	module "$release"
	guest_image "$release"
	crash_image
	host_image "$release"
}
