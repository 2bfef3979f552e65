#!/bin/bash
# tools.sh TOOLS - the readers that judge the results, unpacked beside the system into the folder TOOLS:
#   TOOLS/bin/crash         Debian 13's 8.0.6.  Debian 12's 8.0.2 lists only idle tasks of its own 6.1.192 kernel,
#                           on the hypervisor's own dumps too (struct pid.numbers[] became a flexible array).
#   TOOLS/bin/makedumpfile  Debian 13's 1.7.6: knows zstd, and the page flags of kernel 6.12.
#   TOOLS/venv              drgn and Volatility 3.
set -euo pipefail
TOOLS=$(mkdir -p "$1" && cd "$1" && pwd)
. "$(dirname "$(readlink -f "$0")")/common/debian13.sh"

debian13() {
	[ -x "$TOOLS/bin/crash" ] && [ -x "$TOOLS/bin/makedumpfile" ] && return
	(private_apt "$TOOLS/apt" trixie; unpack crash makedumpfile)
	wrapper makedumpfile /usr/bin/makedumpfile
	wrapper crash /usr/bin/crash
	"$TOOLS/bin/crash" --version | sed -n '/^crash/p;/^$/q'
	"$TOOLS/bin/makedumpfile" -v
}

python_readers() {
	[ -x "$TOOLS/venv/bin/vol" ] && return
	python3 -m venv "$TOOLS/venv"
	"$TOOLS/venv/bin/pip" install -q --disable-pip-version-check drgn==0.3.0 volatility3
}

debian13
python_readers
