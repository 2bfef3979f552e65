# scenarios.sh - boots the hosts and takes the dumps.

bochs="nice -n 5 python3 $here/bochs.py"

# boot SCENARIO MARKER : boots the host until it prints MARKER, writes its memory to OUT/run/SCENARIO/memory and ends
# it.  Set by the caller where they differ: memory (MiB), linux (the Linux guest's vCPUs, by their modes), kvm (parameters
# of kvm_intel), append (more kernel arguments).
boot() {
	local scenario=$1 marker=$2 run=$OUT/run/$1
	need images
	rm -rf "$run" "$OUT/dumps/$scenario"
	mkdir -p "$run" "$OUT/dumps/$scenario"
	disc "$run" "console=ttyS0,115200 loglevel=4 panic=-1 nowatchdog" \
		"scn=$scenario linux=${linux-ss} kvm=${kvm:-} ${append:-}"
	$bochs "$run" "$marker" "${LIMIT:-1800}" --memory "${memory:-384}" --ips "${IPS:-40000000}" \
		--model "$(model)"
	rm "$run/boot.iso"
	cp "$run/console" "$OUT/dumps/$scenario/"
	cp "$OUT/kernel" "$OUT/dumps/$scenario/release"
}

model() { echo corei7_haswell_4770; }

# told SCENARIO : what the host's console tells: the truth, and the layout as the module measured it
told() {
	python3 "$here/console.py" "$OUT/run/$1/console" "$OUT/dumps/$1"
}

# whole SCENARIO : the dump of a host that was stopped from outside
whole() {
	boot "$1" HOST:READY
	told "$1"
	cd "$OUT/dumps/$1"
	python3 "$here/vmcore.py" whole "$OUT/run/$1/memory" console host.elf
	rm "$OUT/run/$1/memory"
	all_forms host.elf
}

step_raw()            { whole raw; }
step_busy()           { linux=rr append=busy=1 whole busy; }
step_ept0()           { linux= kvm=ept=0 whole ept0; }
step_nounrestricted() { linux= kvm=unrestricted_guest=0 whole nounrestricted; }

# The Linux guest is a hypervisor, and has two guests, of which the first one's VMCS is in its memory: running the second
# made its hypervisor write it there.
step_nested() { extra=$OUT/img/nested.cpio.gz linux=s whole nested; }

# One of the Linux guest's vCPUs is left running: nobody has read its registers before the panic.
step_kdump() {
	memory=512 append=crashkernel=128M linux=sr boot kdump CRASH:READY
	told kdump
	cd "$OUT/dumps/kdump"
	python3 "$here/vmcore.py" crashed "$OUT/run/kdump/memory" console vmcore
	rm "$OUT/run/kdump/memory"
	all_forms vmcore
}
