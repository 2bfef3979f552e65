# debian13.sh - programs of Debian 13, unpacked beside the system into the folder TOOLS.  Sourced, with TOOLS set.
#
# Their packages are not installed, and they are run by their own dynamic linker.
. "$(dirname "${BASH_SOURCE[0]}")/apt.sh"

# With an empty package status, a simulated installation names the packages and all they depend on.
unpack() {
	local root=$TOOLS/root debs=$TOOLS/debs
	rm -rf "$root"; mkdir -p "$root" "$debs"
	apt-get -s install "$@" | awk '/^Inst /{ print $2 }' > "$debs/list"
	(cd "$debs" && xargs apt-get download -q < list)
	local deb
	for deb in "$debs"/*.deb; do dpkg -x "$deb" "$root"; done
	rm -rf "$debs"
}

# wrapper NAME PATH : TOOLS/bin/NAME, which runs PATH with the unpacked dynamic linker and libraries
wrapper() {
	mkdir -p "$TOOLS/bin"
	cat > "$TOOLS/bin/$1" <<-EOF
		#!/bin/sh
		root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/root
		exec "\$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \\
			--library-path "\$root/usr/lib/x86_64-linux-gnu:\$root/lib/x86_64-linux-gnu" "\$root$2" "\$@"
	EOF
	chmod +x "$TOOLS/bin/$1"
}
