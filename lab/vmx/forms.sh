# forms.sh - the forms of one host dump.  Names: BASE.COMPRESSION.dLEVEL, as in lab/svm/forms.sh.

# forms SOURCE BASE : the compressed forms of SOURCE, named BASE.*
forms() {
	local source=$1 base=$2
	form "$source" "$base.zlib.d17" -c -d 17
	form "$source" "$base.zlib.d23" -c -d 23
	form "$source" "$base.lzo.d17" -l -d 17
	form "$source" "$base.zstd.d23" -z -d 23
	form "$source" "$base.elf.d17" -E -d 17
	# Debian 12's own 1.7.2; it is older than kernel 6.12
	[ -n "$KERNEL" ] || program=/usr/bin/makedumpfile form "$source" "$base.lzo-1.7.2.d17" -l -d 17
}

# all_forms DUMP : forms of the dump as it is (BASE.*), of one in which no layout is told (scrubbed.*), the ELF dump with
# the layout in a note (noted.elf), and both ELF dumps without types of modules, if there are any (untyped.*)
all_forms() {
	local dump=$1 base=${1%.elf} kind vmlinux
	forms "$dump" "$base"
	python3 "$here/scrub.py" "$dump" scrubbed.elf
	forms scrubbed.elf scrubbed
	for kind in note table wrong; do
		python3 "$here/layout.py" $kind vmcsinfo.txt > vmcsinfo.$kind
	done
	python3 "$here/addnote.py" scrubbed.elf noted.elf VMCSINFO vmcsinfo.note
	vmlinux=$OUT/img/debug/boot/vmlinux-$(cat "$OUT/kernel")
	python3 "$here/untype.py" "$dump" untyped.elf "$vmlinux"
	python3 "$here/untype.py" scrubbed.elf untyped.scrubbed.elf "$vmlinux"
}
