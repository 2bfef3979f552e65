# packages.sh - the host's kernel, which the Linux guest runs too, and the headers that its module is built with.

# The packages that a kernel's headers are made of.
headers() { # headers RELEASE
	echo "linux-headers-$1"
	apt-cache depends "linux-headers-$1" | awk '/Depends: linux-(headers|kbuild)-/ { print $2 }'
}

step_fetch() {
	need deps
	find_release
	local release
	release=$(cat "$OUT/kernel")
	(
		if [ -n "$(debian_of "$KERNEL")" ]; then apt_of "$KERNEL"; fi
		kernels "$release"
		unpack $(headers "$release")
	)
	# the headers name their common part where it would be if they were installed
	sed -i "s#include /usr/src/#include $root/usr/src/#" "$root/usr/src/linux-headers-$release/Makefile"
}
