#!/bin/bash
# deps.sh - installs what the lab needs from Debian: the emulator for the outer host and (inside it) the
# guests, the tools that go into the hosts' initramfs, a compiler for the guests' workload, Python for the test.
set -euo pipefail

packages=(
	qemu-system-x86                  # the outer host (TCG), and copied into it: the guests' VMM
	kexec-tools makedumpfile         # the kdump scenario; Debian's own makedumpfile for one of the forms
	gcc libc6-dev                    # the guests' workload
	flex bison bc libelf-dev libssl-dev make xz-utils   # the sample's small guest kernel
	libsnappy1v5                     # the snappy form of the dumps
	python3 python3-venv             # the test; drgn and Volatility 3 come into a venv (see tools.sh)
	time                             # peak memory of vmcore-split, measured from outside
	ca-certificates debian-archive-keyring
)

missing() {
	local p
	for p; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
	done
}

mapfile -t want < <(missing "${packages[@]}")
[ ${#want[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${want[@]}"
