# packages.sh - the kernels of the hosts and guests.

# The release of guest g2: the same source, built for virtual machines.
cloud_release() { echo "${1%-amd64}-cloud-amd64"; }

# The release of guest g1: the host's, unless OUT/guest-kernel has another.
guest_release() { cat "$OUT/guest-kernel" 2> /dev/null || cat "$OUT/kernel"; }

# Under a kernel of another Debian the guests have this machine's.
step_fetch() {
	need deps
	find_release
	local release
	if [ -n "$(debian_of "$KERNEL")" ]; then
		(apt_of "$KERNEL"; kernels "$(cat "$OUT/kernel")")
		apt_of ""
		release_of "" > "$OUT/guest-kernel"
	fi
	release=$(guest_release)
	kernels "$release" "$(cloud_release "$release")"
}
