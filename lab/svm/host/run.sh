# run.sh - what the lab host does (PID 1's script, from the 9p share).
# Kernel command line: scn=SCENARIO  g1smp=N  cores=1 (the VMMs' own core dumps too)  guestcpu=MODEL
# Talks to the outside by lines "HOST:..." on the console and by the file /share/go.SCENARIO.

commands=0
cores=
g1smp=2
guestcpu=host
vmm="/tools/qemu-system-x86_64 -L /tools/firmware"
for word in $(cat /proc/cmdline); do
	case $word in scn=*|g1smp=*|cores=*|guestcpu=*) eval "$word";; esac
done
out=/share/out/$scn
mkdir -p $out
export LD_LIBRARY_PATH=/tools/lib PATH=$PATH:/tools

say() { echo "HOST:$* (up $(cut -d' ' -f1 /proc/uptime))"; }
fail() { say "FAIL $*"; dmesg | tail -20; sleep 99999; }
pid_of() { eval echo "\$pid_$1"; }

describe_host() {
	uname -a; cat /proc/cmdline; grep -E 'Kernel|RAM' /proc/iomem; sed -n 1,28p /proc/cpuinfo
	for module in kvm kvm_amd; do
		for file in /sys/module/$module/parameters/*; do echo "$file=$(cat $file 2>/dev/null)"; done
	done
	ls -l /sys/kernel/btf; echo "vmcoreinfo $(cat /sys/kernel/vmcoreinfo)"
	cat /sys/kernel/mm/transparent_hugepage/enabled /proc/modules
	grep -wE '_stext|init_task|init_top_pgt|vm_list|modules' /proc/kallsyms
}

# guest NAME MIB VCPUS KERNEL SPIN qemu-argument... : starts a guest; KERNEL names its kernel and initramfs
guest() {
	name=$1 mib=$2 vcpus=$3 kernel=$4 spin=$5
	shift 5
	mkfifo /tmp/$name.mon.in /tmp/$name.mon.out
	cat /tmp/$name.mon.out > /tmp/$name.mon.log &
	: > $out/$name.console
	set -- $vmm -name $name -accel kvm -m $mib -smp $vcpus \
		-nodefaults -no-user-config -display none -vga none -no-reboot -cpu $guestcpu \
		-chardev pipe,id=mon,path=/tmp/$name.mon -mon chardev=mon,mode=readline \
		-serial file:$out/$name.console -device vmcoreinfo \
		-kernel /share/vmlinuz-$kernel -initrd /share/guest-$kernel.cpio.gz \
		-append "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check random.trust_cpu=on panic=0 tag=$name spin=$spin $append" "$@"
	echo "$@" > $out/$name.cmdline
	"$@" > $out/$name.qemu.log 2>&1 &
	eval "pid_$name=$!"
	say "guest $name started pid $!"
}

# own NAME vmm-argument... : a guest of the lab's own VMM, which has told the truth of it when this returns
own() {
	name=$1
	shift
	log=$out/$name.vmm.log
	vmm --truth=$out/$name.truth.elf "$@" > $log 2>&1 &
	eval "pid_$name=$!"
	until grep -q "^VMM .*: READY" $log; do
		sleep 1
		grep -q FAIL $log && { cat $log; fail "guest $name"; }
	done
	grep '^TRUTH' $log > $out/$name.truth.txt
	grep -h '^\[.*GUEST:' $log | sed 's/^\[[^]]*\] //' > $out/$name.console
	say "guest $name started pid $(pid_of $name)"
}

ready() {
	for name; do
		until grep -q GUEST:READY $out/$name.console; do
			sleep 1
			[ -d /proc/$(pid_of $name) ] || { cat $out/$name.qemu.log; fail "guest $name died"; }
		done
		say "guest $name ready"
	done
}

# monitor NAME COMMAND... : one command of the guest's monitor; returns when it was carried out
monitor() {
	name=$1
	shift
	commands=$((commands + 1))
	mark=$((700000 + commands))
	echo "$*" > /tmp/$name.mon.in
	echo "print $mark" > /tmp/$name.mon.in
	until grep -q "^0x$(printf %x $mark)" /tmp/$name.mon.log; do usleep 200000; done
}

# freeze NAME... : stops guests and reads their registers; this leaves their memory as it is
freeze() {
	for guest; do
		monitor $guest stop
		for command in "info registers -a" "info cpus" "info mtree -f" "info ramblock"; do
			monitor $guest $command
		done
		pid=$(pid_of $guest)
		for file in maps smaps status; do cat /proc/$pid/$file > $out/$guest.$file; done
		ls -l /proc/$pid/fd > $out/$guest.fds
		say "guest $guest stopped"
	done
}

# truth NAME : the guest's dump by its own VMM.  Reading every page populates the VMM's page tables (with zero
# pages), so where the host is dumped from outside it is taken after that; the guest is stopped all the while.
# The VMM writes page by page, which the 9p share is slow at; dd makes large writes of them.
truth() {
	mkfifo /tmp/$1.truth
	dd ibs=64k obs=256k < /tmp/$1.truth > $out/$1.truth.elf 2>/dev/null &
	writer=$!
	monitor $1 dump-guest-memory /tmp/$1.truth
	wait $writer
	monitor $1 info registers -a
	cp /tmp/$1.mon.log $out/$1.monitor.log
	say "guest $1 truth written"
}

# core NAME : the VMM's own core, by the host kernel's core dumper
core() {
	pid=$(pid_of $1)
	kill -ABRT $pid
	wait $pid
	mv $out/core.$pid $out/$1.core
	say "guest $1 core $(stat -c %s $out/$1.core)"
}

# state NAME : QEMU's migration stream, which has registers that neither its dump nor its monitor tells
state() { monitor $1 migrate "exec:cat>$out/$1.state"; }

# dumped_from_outside NAME... : the outer hypervisor dumps the stopped host; then the truth is written
dumped_from_outside() {
	sync
	say "READY $scn"
	until [ -e /share/go.$scn ]; do sleep 1; done
	for stopped; do truth $stopped; done
	for stopped in ${cores:+"$@"}; do core $stopped; done
	sync
	say "TRUTH $scn"
}

g1() { guest g1 128 $g1smp host 5a:0:4096 -M q35; }
# g2 EXTRA : RAM in a memfd; EXTRA are further properties of it
g2() {
	guest g2 96 1 cloud 3c:0:2048 -M pc,memory-backend=m0 \
		-object memory-backend-memfd,id=m0,size=96M,share=on$1
}

huge_pages() {
	echo always > /sys/kernel/mm/transparent_hugepage/enabled
	echo 1 > /proc/sys/vm/compact_memory
	echo 48 > /proc/sys/vm/nr_hugepages
	cat /proc/sys/vm/nr_hugepages
}

# What is to be reclaimed is in a group of its own.
guests_in_group() {
	mkdir /tmp/cgroup
	mount -t cgroup2 cgroup /tmp/cgroup
	echo +memory > /tmp/cgroup/cgroup.subtree_control
	mkdir /tmp/cgroup/guests
	echo 1 > /tmp/cgroup/guests/cgroup.procs
}

swap_on() {
	modprobe virtio_blk
	mkswap /dev/vda
	swapon /dev/vda
}

# reclaim MIB : that much of the guests' memory goes to swap
reclaim() {
	echo $1M > /tmp/cgroup/guests/memory.reclaim
	sync
	cat /proc/swaps
}

# A small device for each compressor: they are filled one after the other.
zram_on() {
	for module in lzo lzo-rle lz4 lz4hc zstd deflate; do modprobe $module; done
	modprobe zram num_devices=6
	index=0
	for compressor in lzo-rle lzo lz4 lz4hc zstd deflate; do
		device=zram$index
		if echo $compressor > /sys/block/$device/comp_algorithm; then
			echo 12M > /sys/block/$device/disksize
			mkswap /dev/$device
			swapon /dev/$device
			index=$((index + 1))
		fi
	done
	cat /sys/block/zram*/comp_algorithm
}

# zswap POOL COMPRESSOR : what is swapped out from now on is compressed like that
zswap() {
	for module in $1 $2; do modprobe $module; done
	parameters=/sys/module/zswap/parameters
	[ -e $parameters/zpool ] && echo $1 > $parameters/zpool
	echo $2 > $parameters/compressor
	echo 40 > $parameters/max_pool_percent
	echo Y > $parameters/enabled
	grep . $parameters/*
}

panic_with_kdump() {
	kexec -p /share/vmlinuz-host --initrd=/share/kdump.cpio.gz \
		--command-line="console=ttyS0 quiet mitigations=off tsc=reliable nr_cpus=1 reset_devices irqpoll"
	say "kexec -p rc $? loaded $(cat /sys/kernel/kexec_crash_loaded)"
	sync
	sleep 2
	echo 1 > /proc/sys/kernel/sysrq
	echo c > /proc/sysrq-trigger
}

modprobe kvm_amd
[ -c /dev/kvm ] || fail "no /dev/kvm"
describe_host > $out/host.info 2>&1
ulimit -c unlimited
echo "$out/core.%p" > /proc/sys/kernel/core_pattern
append=
case $scn in
one|la57)
	g1; ready g1; freeze g1; dumped_from_outside g1;;
two)
	g1; g2; ready g1 g2; freeze g1 g2; dumped_from_outside g1 g2;;
huge)
	huge_pages
	g1; g2 ,hugetlb=on,hugetlbsize=2M; ready g1 g2; freeze g1 g2; dumped_from_outside g1 g2;;
swap)
	guests_in_group
	swap_on
	g1; ready g1; freeze g1
	reclaim 40
	dumped_from_outside g1;;
zram)
	guests_in_group
	zram_on
	g1; g2; ready g1 g2; freeze g1 g2
	reclaim 70
	grep . /sys/block/zram*/mm_stat
	dumped_from_outside g1 g2;;
zswap)
	guests_in_group
	swap_on
	g1; g2; ready g1 g2; freeze g1 g2
	reclaim 5
	zswap zbud lzo; reclaim 15
	zswap z3fold lz4; reclaim 15
	zswap zsmalloc zstd; reclaim 15
	zswap zsmalloc lzo-rle; reclaim 15
	mount -t debugfs debugfs /sys/kernel/debug
	grep . /sys/kernel/debug/zswap/*
	dumped_from_outside g1 g2;;
run)
	g1; g2; ready g1 g2; dumped_from_outside;;
kdump)
	g1; g2; ready g1 g2; freeze g1; truth g1; panic_with_kdump;;
cores|cores13)
	if [ $scn = cores13 ]; then
		cp -r /share/qemu13 /tmp/
		vmm="/tmp/qemu13/lib/ld-linux-x86-64.so.2 --library-path /tmp/qemu13/lib /tmp/qemu13/qemu-system-x86_64"
		vmm="$vmm -L /tmp/qemu13/firmware"
	fi
	g1; g2; guest g3 96 1 cloud 77:0:1024 -M q35; ready g1 g2 g3
	freeze g1; truth g1; state g1
	monitor g2 stop
	# leaves the VMM with a copy that looks right and grows old
	monitor g3 info registers
	cp /tmp/g3.mon.log $out/g3.monitor.log
	sleep 3
	core g1; core g2; core g3
	sync
	say "TRUTH $scn";;
vmm)
	own vmL vmL 13 ss linux /share/guest.kernel $(cat /share/guest.kernel.entry) /share/guest-host.cpio.gz \
		"console=ttyS0 quiet mitigations=off acpi=off pci=off no_timer_check nowatchdog random.trust_cpu=on panic=-1 tag=vmL spin=5a:0:4096" 128
	own vmS vmS 10 ss tiny-slots
	own vmH vmH 11 ss tiny-huge
	own vmR vmR 12 s real
	own vmN vmN 14 - tiny
	own vmT --second=$out/vmT2.truth.elf vmT 16 s tiny
	: > $out/vmT2.truth.txt
	say "guest vmT2 started pid $(pid_of vmT)-2"
	own vmO --orphan vmO 15 s tiny
	wait $(pid_of vmO)
	for name in vmL vmS vmH vmR vmN vmT; do cat /proc/$(pid_of $name)/maps > $out/$name.maps; done
	dumped_from_outside;;
sample)
	append="init_on_free=1 random=0"
	guest sample 64 2 sample 77:0:64 -M q35; ready sample; freeze sample; dumped_from_outside sample;;
*)
	fail "no scenario $scn";;
esac
while :; do sleep 600; done
