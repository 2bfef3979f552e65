# initramfs.sh - what initramfs images are made of.

busybox=$root/bin/busybox

# pack DIR FILE : DIR as a compressed cpio archive
pack() { (cd "$1" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc 2>/dev/null | gzip -1 > "$2"); }

# skeleton DIR INIT : an initramfs with busybox and INIT as /init
skeleton() {
	rm -rf "$1"; mkdir -p "$1"/{bin,sbin,lib64,lib}
	cp "$busybox" "$1/bin/"
	install -m 755 "$2" "$1/init"
}

# known_modules RELEASE NAME... : those that the kernel has, or has built in
known_modules() {
	local release=$1 name
	shift
	for name; do
		if "$root/bin/modprobe" -d "$root" -S "$release" --show-depends "$name" > /dev/null 2>&1; then echo "$name"; fi
	done
}

# modules DIR RELEASE NAME... : kernel modules, with those they depend on
modules() {
	local dir=$1 release=$2 name file to
	shift 2
	mkdir -p "$dir/lib/modules/$release"
	for name; do
		"$root/bin/modprobe" -d "$root" -S "$release" --show-depends "$name"
	done | awk '/^insmod/ { print $2 }' | sort -u | while read -r file; do
		to=$dir/lib/modules/$release/${file#*/lib/modules/"$release"/}
		install -D -m 644 "$file" "$to"
	done
	cp "$root/lib/modules/$release"/modules.{builtin*,order} "$dir/lib/modules/$release/"
	"$root/bin/depmod" -b "$dir" "$release"
}

# programs DIR FILE... : programs with their libraries, started through /lib64's dynamic linker
programs() {
	local dir=$1
	shift
	mkdir -p "$dir"/tools/lib
	cp "$@" "$dir/tools/"
	ldd "$@" | awk '$3 ~ /^\// { print $3 }' | sort -u | xargs -I{} cp -L {} "$dir/tools/lib/"
	cp -L /lib64/ld-linux-x86-64.so.2 "$dir/lib64/"
}
