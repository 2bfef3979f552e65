#!/bin/bash
# build.sh OUT [step...] - real host dumps with real kvm_amd guests inside, made entirely under TCG (no
# hardware virtualisation).  Without steps: all scenarios.
#
#   KERNEL=6.12  the hosts' kernel series (default: what linux-image-amd64 depends on); 5.10 is Debian 11's
#   CACHE=DIR    keeps the .deb files (default OUT/deb)
#   FORCE=1      does the named steps again; a step that was done before is otherwise left alone
#
# Scenarios (each a step; OUT/dumps/SCENARIO holds its results):
#   one     1 guest, 1 vCPU, stopped
#   two     2 guests, stopped: g1 with 2 vCPUs and anonymous RAM; g2 with 1 vCPU, memfd RAM, another kernel
#   huge    as two, with transparent huge pages under g1 and hugetlb pages under g2
#   run     as two, guests left running while the host is dumped from outside (no truth)
#   kdump   as two, g1 stopped, g2 running; the host really panics and its crash kernel saves /proc/vmcore
#   swap    as one with 2 vCPUs; the host has swapped out a part of the guest's RAM
#   zram    as two; a part of the guests' RAM is swapped out to zram devices, one for each compressor
#   zswap   as two; a part of the guests' RAM is swapped out to zswap, in pools of several kinds, and to a disk
#   la57    as swap without the swapping; 5-level page tables in host and guest
#   vmm     guests of the lab's own VMM: with many slots, in one process, without a process, and Linux
#   cores, cores13  three guests of which the VMMs' cores are taken (of this Debian's QEMU, of Debian 13's): g1 stopped
#           and asked for its registers, g2 stopped, g3 running; for the lab of QEMU's cores only
#   sample  a small host with one small guest, for the shipped sample
# Other steps, which scenarios call as they need them: deps tools fetch images smallkernel
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=svm
. "$here/../common/steps.sh" "$1"; shift
scenarios="one two huge run kdump swap zram zswap la57 vmm sample"
mkdir -p "$OUT/share/out"

. "$here/../common/packages.sh"
. "$here/../common/initramfs.sh"
. "$here/../common/form.sh"
. "$here/../common/qemu13.sh"
. "$here/packages.sh"
. "$here/images.sh"
. "$here/smallkernel.sh"
. "$here/forms.sh"
. "$here/scenarios.sh"

run_steps ${*:-$scenarios}; exit   # on one line: this file may be edited while it runs
