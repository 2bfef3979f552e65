#!/bin/bash
# build.sh OUT [step...] - real host dumps with real kvm_intel guests inside, made without Intel hardware: the host
# runs in the emulator Bochs, which knows VMX.  Without steps: raw, busy and kdump.
#
#   KERNEL=6.12  the host's kernel series (default: what linux-image-amd64 depends on)
#   CACHE=DIR    keeps the .deb files (default OUT/deb)
#   FORCE=1      does the named steps again; a step that was done before is otherwise left alone
#   IPS=N        emulated instructions per second of the host's clock (default 40000000)
#   LIMIT=N      seconds that a host may take (default 1800)
#
# Scenarios (each a step; OUT/dumps/SCENARIO holds its results):
#   raw             the emulator is stopped with all guests up, and its memory written as an ELF vmcore
#   busy            as raw, but no vCPU was stopped: KVM has copies of what a running guest leaves, and no others
#   kdump           the host really panics, and its crash kernel boots; the dump is what its /proc/vmcore is
#   ept0            as raw without the Linux guest, kvm_intel with ept=0
#   nounrestricted  as raw without the Linux guest, kvm_intel with unrestricted_guest=0
#   nested          as raw, and the Linux guest runs two guests itself
# Other steps, which scenarios call as they need them: deps tools fetch images
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=vmx
. "$here/../common/steps.sh" "$1"; shift
scenarios="raw busy kdump"

. "$here/../common/packages.sh"
. "$here/../common/initramfs.sh"
. "$here/../common/form.sh"
. "$here/packages.sh"
. "$here/images.sh"
. "$here/forms.sh"
. "$here/scenarios.sh"

run_steps ${*:-$scenarios}; exit   # on one line: this file may be edited while it runs
