#!/bin/bash
# build.sh OUT [step...] - real cores of real QEMU processes, with the truth about their guests.  Without steps: all
# scenarios.
#
#   KERNEL=6.12  the guests' kernel series (default: what linux-image-amd64 depends on)
#   CACHE=DIR    keeps the .deb files (default OUT/deb)
#   FORCE=1      does the named steps again; a step that was done before is otherwise left alone
#
# Scenarios (each a step; OUT/dumps/SCENARIO holds its results), by this system's QEMU, emulated (TCG) if not said
# otherwise:
#   anon      2 vCPUs, anonymous RAM: cores by gdb while it runs and stopped, and by the kernel
#   memfd     RAM in a shared memfd
#   hugetlb   RAM in shared huge pages: not in the kernel's core under the default coredump_filter
#   big       3 GiB, split below 4 GiB (q35)
#   bigpc     3 GiB, split below 4 GiB by an option (pc)
#   plain     1 vCPU of an old processor (qemu64, no XSAVE)
#   wide      3 vCPUs with all that QEMU can emulate (max)
#   dontdump  RAM that QEMU excludes from its cores
#   kvm       by KVM, on the host of the SVM lab: kvm (stopped and asked for its registers), kvm-stopped, kvm-running
#   anon13 memfd13 big13 bigpc13 plain13 wide13 dontdump13 kvm13   the same by Debian 13's QEMU
# Other steps, which scenarios call as they need them: deps tools fetch images qemu13
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=qemu
. "$here/../common/steps.sh" "$1"; shift
scenarios="anon memfd hugetlb big bigpc plain wide dontdump kvm anon13 memfd13 big13 bigpc13 plain13 wide13 dontdump13 kvm13"

. "$here/../common/packages.sh"
. "$here/../common/initramfs.sh"
. "$here/../common/qemu13.sh"
. "$here/images.sh"
. "$here/scenarios.sh"

run_steps ${*:-$scenarios}; exit   # on one line: this file may be edited while it runs
