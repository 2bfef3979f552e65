# debian13.sh - programs of Debian 13, unpacked beside the system into the folder TOOLS.  Sourced, with TOOLS set.
#
# Their packages are not installed: they are fetched by apt under a configuration of their own (its lists, cache and
# status lie under TOOLS; signatures are checked with Debian's archive keyring) and run by their own dynamic linker.
release=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The mirror that this machine's apt uses for its own release.
mirror() {
	. /etc/os-release
	apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Identifier: Packages' |
		awk -v codename="$VERSION_CODENAME" '$1 == "Debian" && $2 == codename { print $3; exit }'
}

private_apt() {
	local a=$TOOLS/apt
	mkdir -p "$a"/{lists/partial,cache/archives/partial,etc}
	: > "$a/status"
	echo "deb [signed-by=$keyring] $(mirror) $release main" > "$a/etc/sources.list"
	cat > "$a/apt.conf" <<-EOF
		Dir::State "$a";
		Dir::State::lists "$a/lists";
		Dir::State::status "$a/status";
		Dir::Cache "$a/cache";
		Dir::Etc::sourcelist "$a/etc/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
	EOF
	export APT_CONFIG=$a/apt.conf
	apt-get update -q
}

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
