# forms.sh - the forms of one host dump that makedumpfile can write.  The compressions are run at one level, the
# levels with one compression: they do not depend on each other.
#
# Names: BASE.COMPRESSION.dLEVEL.  Level bits: 1 zero pages, 2 page cache, 4 private page cache, 8 user data,
# 16 free pages.  flat (the stream format) and split (a set of files) are made for the readers of those formats.

# forms SOURCE BASE : all forms of SOURCE, named BASE.*
forms() {
	local source=$1 base=$2 level
	for level in 0 1 17 23 31; do
		form "$source" "$base.zlib.d$level" -c -d $level
	done
	form "$source" "$base.raw.d17" -d 17
	form "$source" "$base.lzo.d1" -l -d 1
	form "$source" "$base.lzo.d31" -l -d 31
	form "$source" "$base.zstd.d1" -z -d 1
	form "$source" "$base.zstd.d23" -z -d 23
	form "$source" "$base.elf.d17" -E -d 17
	form "$source" "$base.elf.d31" -E -d 31
	# Debian has no makedumpfile with snappy
	python3 "$here/snappy.py" "$base.raw.d17" "$base.snappy.d17"
	"$makedumpfile" -F -l -d 1 "$source" > "$base.flat-lzo.d1" 2>/dev/null
	"$makedumpfile" -c -d 1 --split "$source" "$base.split-zlib.d1".{1,2} > /dev/null 2>&1
	# Debian 12's own 1.7.2, as a Debian 12 crash server would write it; it is older than kernel 6.12
	[ -n "$KERNEL" ] || program=/usr/bin/makedumpfile form "$source" "$base.lzo-1.7.2.d1" -l -d 1
}
