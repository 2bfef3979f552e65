# steps.sh OUT - what the labs' build.sh have in common: folders, and steps that are done once.
# Sourced, with `lab` (this lab's name) and `here` (its folder) set.  Sets OUT, CACHE, KERNEL, FORCE.
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
CACHE=$(mkdir -p "${CACHE:-$OUT/deb}" && cd "${CACHE:-$OUT/deb}" && pwd)
KERNEL=${KERNEL:-}
FORCE=${FORCE:-}
mkdir -p "$OUT"/{done,img,run,dumps}
echo "*" > "$OUT/.gitignore"     # wherever it is: nothing of it belongs into a repository
export PATH=$PATH:/sbin:/usr/sbin

say() { echo "[$(date +%T)] $*"; }

# need STEP : does STEP unless it was done before
need() {
	[ -e "$OUT/done/$1" ] && return
	say "$1"
	"step_$1"
	touch "$OUT/done/$1"
}

step_deps()  { "$here/../deps.sh" "$lab"; }
step_tools() { "$here/../tools.sh" "$OUT/tools"; }

run_steps() {
	local step
	for step in "$@"; do
		declare -F "step_$step" >/dev/null || { echo "$0: no step '$step'" >&2; exit 2; }
	done
	for step in "$@"; do
		[ -n "$FORCE" ] && rm -f "$OUT/done/$step"
		need "$step"
	done
	say "done: $*"
}
