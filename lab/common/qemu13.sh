# qemu13.sh - Debian 13's QEMU, beside this system's.

step_qemu13() {
	need deps
	(
		TOOLS=$OUT/qemu13
		mkdir -p "$TOOLS"
		. "$here/../common/debian13.sh"
		private_apt "$TOOLS/apt" trixie
		unpack qemu-system-x86
	)
}
