# apt.sh - packages of other releases of Debian than this machine's.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The mirror that this machine's apt uses for its own release.
mirror() {
	. /etc/os-release
	apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Identifier: Packages' |
		awk -v codename="$VERSION_CODENAME" '$1 == "Debian" && $2 == codename { print $3; exit }'
}

# private_apt FOLDER RELEASE : from here on, apt is that of another release.  Its lists, cache and status lie in FOLDER;
# signatures are checked with Debian's archive keyring.
private_apt() {
	local a=$1
	mkdir -p "$a"/{lists/partial,cache/archives/partial,etc}
	: > "$a/status"
	echo "deb [signed-by=$keyring] $(mirror) $2 main" > "$a/etc/sources.list"
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
