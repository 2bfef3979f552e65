# form.sh - one form of a host dump, written by makedumpfile.

makedumpfile=$OUT/tools/bin/makedumpfile

# form SOURCE RESULT makedumpfile-argument... : one form; a failure is shown and leaves no file
form() {
	local source=$1 result=$2
	shift 2
	rm -f "$result"
	if "${program:-$makedumpfile}" --message-level 5 "$@" "$source" "$result" > "$result.log" 2>&1; then
		rm "$result.log"
	else
		echo "makedumpfile $* failed for $result:" >&2
		tail -3 "$result.log" >&2
		rm -f "$result"
		return 1
	fi
}
