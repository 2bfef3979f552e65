# scenarios.sh - boots the hosts and takes the dumps.

outer="nice -n 5 python3 $here/outer.py"

# boot SCENARIO MARKER TIMEOUT : boots the host until it prints MARKER.  Set by the caller where they differ:
# memory (MiB), cpu (the host's CPU model), append (more kernel arguments), devices (more QEMU arguments).
# Under TCG with a thread for each processor, nested guests and now and then the host itself die early: what one
# processor changes, another sees late.  Then the host is booted anew, after the second time on one processor of
# this machine alone, where that is rare and all takes twice as long.
boot() {
	local try one=
	for try in 1 2 3 4 5 6; do
		[ $try -gt 2 ] && one="taskset --cpu-list $(first_processor)"
		boot_once "$@" && return
		say "boot of $1 failed (try $try); the console's end:"
		tail -5 "$OUT/run/$1/console"
		$outer quit "$OUT/run/$1" || true
	done
	return 1
}

first_processor() { python3 -c 'import os; print(min(os.sched_getaffinity(0)))'; }

boot_once() {
	local scenario=$1 marker=$2 timeout=$3
	cp "$here/host/run.sh" "$OUT/share/"
	rm -rf "$OUT/share/out/$scenario" "$OUT/share/go.$scenario" "$OUT/dumps/$scenario"
	mkdir -p "$OUT/dumps/$scenario"
	$outer run "$OUT/run/$scenario" "$marker" "$timeout" "$OUT/share/out" -- $one qemu-system-x86_64 \
		-accel tcg,thread=multi,tb-size=512 -M q35 -cpu ${cpu:-EPYC},+svm,+npt -smp 2 -m ${memory:-512} \
		-nodefaults -no-user-config -display none -no-reboot -device vmcoreinfo \
		-kernel "$OUT/img/vmlinuz" -initrd "$OUT/img/host.cpio.gz" \
		-append "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check random.trust_cpu=on panic=0 scn=$scenario cores=${CORES:-} ${append:-}" \
		-fsdev local,id=share,path="$OUT/share",security_model=none \
		-device virtio-9p-pci,fsdev=share,mount_tag=share ${devices:-}
}

# dump SCENARIO FORMAT... : the outer QEMU's dumps of the host as it is now, and its registers
dump() {
	local scenario=$1 format
	shift
	for format; do
		$outer dump "$OUT/run/$scenario" "$OUT/dumps/$scenario/host.$format" "$format"
	done
	$outer hmp "$OUT/run/$scenario" 'info registers -a' > "$OUT/dumps/$scenario/host.registers.txt"
}

# release SCENARIO : lets the host run on until the guests' own VMMs have written the truth
release() {
	$outer qmp "$OUT/run/$1" cont >/dev/null
	touch "$OUT/share/go.$1"
	$outer wait "$OUT/run/$1" HOST:TRUTH 900 "$OUT/share/out"
	rm "$OUT/share/go.$1"
}

# collect SCENARIO : what the host wrote goes to the dumps; the host is ended
collect() {
	cp --sparse=always -r "$OUT/share/out/$1/." "$OUT/dumps/$1/"
	cp "$OUT/run/$1"/{console,qemu.cmdline} "$OUT/dumps/$1/"
	rm -rf "$OUT/share/out/$1"
	$outer quit "$OUT/run/$1"
}

# makedumpfile reads ELF dumps only if the program headers follow the ELF header at once; QEMU's do not.
forms_of_host() {
	cd "$OUT/dumps/$1"
	python3 "$here/elfnorm.py" host.elf host.sparse.elf
	forms host.sparse.elf host
}

few_forms_of_host() {
	cd "$OUT/dumps/$1"
	python3 "$here/elfnorm.py" host.elf host.sparse.elf
	form host.sparse.elf host.zlib.d1 -c -d 1
	form host.sparse.elf host.zstd.d31 -z -d 31
}

# stopped SCENARIO [FORMAT...] : a scenario whose guests are stopped and dumped from outside
stopped() {
	local scenario=$1
	need images
	boot "$scenario" HOST:READY 1500
	dump "$scenario" elf "${@:2}"
	release "$scenario"
	collect "$scenario"
	forms_of_host "$scenario"
}

step_one()    { append=g1smp=1 stopped one; }
step_huge()   { stopped huge; }
step_run()    { stopped run; }
step_la57()   { cpu=max stopped la57; }

# QEMU's own kdump-zlib is in the flattened format, with an empty utsname and a wrong phys_base.
step_two() {
	stopped two kdump-zlib
	"$makedumpfile" -R host.kdump-zlib.rearranged < host.kdump-zlib > /dev/null
}

# swapped SCENARIO : a scenario whose host swaps, to a disk (whose image is kept as it was when the host was dumped)
# or in memory
swapped() {
	local scenario=$1
	need images
	truncate -s 256M "$OUT/img/$scenario.swap"
	devices="-drive file=$OUT/img/$scenario.swap,format=raw,if=virtio" boot "$scenario" HOST:READY 1500
	dump "$scenario" elf
	cp --sparse=always "$OUT/img/$scenario.swap" "$OUT/dumps/$scenario/swap.img"
	release "$scenario"
	collect "$scenario"
	rm "$OUT/img/$scenario.swap"
}

step_swap() {
	swapped swap
	forms_of_host swap
}

step_zswap() {
	swapped zswap
	few_forms_of_host zswap
}

# The disk is not swapped to.
step_zram() {
	swapped zram
	rm "$OUT/dumps/zram/swap.img"
	few_forms_of_host zram
}

step_kdump() {
	need images
	kdump_image "$(guest_release)"     # anew each time, as it has the program under test
	memory=736 append=crashkernel=192M boot kdump KDUMP:DONE 2400
	collect kdump
	cd "$OUT/dumps/kdump"
	forms vmcore vmcore
}

step_vmm() {
	memory=640 stopped vmm
}

step_sample() {
	need smallkernel
	memory=320 stopped sample
}

# Cores of the guests' VMMs; what the host itself was does not matter.
step_cores() {
	need images
	memory=768 boot cores HOST:TRUTH 1500
	collect cores
}

step_cores13() {
	need images
	need qemu13
	vmm_on_share
	memory=1024 boot cores13 HOST:TRUTH 1500
	collect cores13
}
