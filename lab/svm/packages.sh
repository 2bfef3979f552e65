# packages.sh - the kernels of the hosts and guests.

# The release of guest g2: the same source, built for virtual machines.
cloud_release() { echo "${1%-amd64}-cloud-amd64"; }

step_fetch() {
	need deps
	find_release
	local release
	release=$(cat "$OUT/kernel")
	kernels "$release" "$(cloud_release "$release")"
}
