# scenarios.sh - runs the QEMUs, and takes their cores and the truth.

run_qemu="python3 $here/vmm.py"

# vmm SCENARIO : fills `command` with the QEMU that the scenario's name asks for: ...13 is Debian 13's, run by its own
# dynamic linker
vmm() {
	case $1 in
	*13)
		need qemu13
		local r=$OUT/qemu13/root l=$OUT/qemu13/root/usr/lib/x86_64-linux-gnu
		command=("$l/ld-linux-x86-64.so.2" --library-path "$l" "$r/usr/bin/qemu-system-x86_64"
			-L "$r/usr/share/qemu" -L "$r/usr/share/seabios");;
	*)
		command=(qemu-system-x86_64);;
	esac
}

# cores SCENARIO MIB "CORE..." qemu-argument... : boots a guest and takes the named cores, see vmm.py
cores() {
	local scenario=$1 mib=$2 wanted=$3
	shift 3
	need images
	vmm "$scenario"
	rm -rf "$OUT/dumps/$scenario"
	$run_qemu "$OUT/dumps/$scenario" GUEST:READY "$wanted" -- "${command[@]}" \
		-name "$scenario" -accel tcg,thread=multi,tb-size=64 -cpu EPYC -smp 2 -m "$mib" \
		-nodefaults -no-user-config -display none -vga none -no-reboot -device vmcoreinfo \
		-kernel "$OUT/img/vmlinuz" -initrd "$OUT/img/guest.cpio.gz" \
		-append "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check random.trust_cpu=on panic=0 tag=$scenario spin=5a:0:4096" \
		"$@"
}

anon()     { cores $1 128 "running.gcore stopped.gcore stopped.core" -M q35; }
memfd()    { cores $1 128 "stopped.gcore stopped.core" -M pc,memory-backend=m0 \
		-object memory-backend-memfd,id=m0,size=128M,share=on; }
big()      { cores $1 3072 stopped.core -M q35; }
bigpc()    { cores $1 3072 stopped.core -M pc,max-ram-below-4g=2G; }
plain()    { cores $1 128 stopped.core -M pc -cpu qemu64 -smp 1; }
wide()     { cores $1 128 stopped.core -M q35 -cpu max -smp 3; }
dontdump() { cores $1 128 "stopped.gcore stopped.core" -M q35,dump-guest-core=off; }

hugetlb() {
	local pages
	pages=$(cat /proc/sys/vm/nr_hugepages)
	echo $((pages + 64)) > /proc/sys/vm/nr_hugepages
	cores $1 128 "stopped.gcore stopped.core" -M q35,memory-backend=m0 \
		-object memory-backend-memfd,id=m0,size=128M,share=on,hugetlb=on,hugetlbsize=2M || true
	echo "$pages" > /proc/sys/vm/nr_hugepages
	[ -e "$OUT/dumps/$1/stopped.core" ]
}

# QEMUs that use KVM run in the host of the SVM lab; that leaves its results in a folder of its own.
kvm() {
	local version=${1#kvm} svm=$OUT/svm guest name
	need tools
	mkdir -p "$svm/done"
	ln -sfn ../tools "$svm/tools"; touch "$svm/done/tools"
	[ -z "$version" ] || { need qemu13; ln -sfn ../qemu13 "$svm/qemu13"; touch "$svm/done/qemu13"; }
	CACHE=$CACHE "$here/../svm/build.sh" "$svm" "cores$version"
	for guest in g1:kvm g2:kvm-stopped g3:kvm-running; do
		name=${guest#*:}
		take_guest "$svm/dumps/cores$version" "${guest%:*}" "$OUT/dumps/kvm$version${name#kvm}"
	done
}

# take_guest FROM GUEST TO : the results of one guest under the names that vmm.py uses
take_guest() {
	local from=$1 guest=$2 to=$3 file
	rm -rf "$to"; mkdir -p "$to"
	for file in cmdline console core:stopped.core maps smaps truth.elf monitor.log; do
		[ ! -e "$from/$guest.${file%:*}" ] || mv "$from/$guest.${file%:*}" "$to/${file#*:}"
	done
	[ ! -e "$from/$guest.state" ] || python3 "$here/vmstate.py" "$from/$guest.state" > "$to/state.json"
	rm -f "$from/$guest.state"
}

for scenario in $scenarios; do
	eval "step_$scenario() { ${scenario%13} $scenario; }"
done
