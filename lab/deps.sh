#!/bin/bash
# deps.sh LAB... - installs what a lab (svm, vmx) needs from Debian: the emulator for the outer host, the tools that go
# into the hosts' initramfs, a compiler for what runs there, Python for the test.
set -euo pipefail

packages=(
	kexec-tools makedumpfile         # the kdump scenarios; Debian's own makedumpfile for one of the forms
	gcc libc6-dev make               # what runs in hosts and guests
	python3 python3-venv             # the test; drgn and Volatility 3 come into a venv (see tools.sh)
	time                             # peak memory of vmcore-split, measured from outside
	ca-certificates debian-archive-keyring
)
svm=(
	qemu-system-x86                  # the outer host (TCG), and copied into it: the guests' VMM
	flex bison bc libelf-dev libssl-dev xz-utils   # the sample's small guest kernel
	libsnappy1v5                     # the snappy form of the dumps
	gdb                              # opens the cores of the VMMs
)
qemu=(
	qemu-system-x86 gdb xz-utils      # what is dumped, and by what
)
vmx=(
	bochs bochs-term bochsbios vgabios             # the outer host: the emulator that knows VMX
	isolinux syslinux-common xorriso # the CD it boots from
	libelf-dev xz-utils zstd         # the module; the guest's kernel, unpacked
)

missing() {
	local p
	for p; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
	done
}

for lab; do
	declare -n of_lab=$lab
	packages+=("${of_lab[@]}")
done
mapfile -t want < <(missing "${packages[@]}")
[ ${#want[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${want[@]}"
