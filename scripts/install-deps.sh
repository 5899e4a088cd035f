#!/usr/bin/env bash
# Sees to it that Debian packages are installed. Silent when they all are.
#
#   install-deps.sh require PACKAGE...   as root: installs what is missing
#                                        else: says what to install, exit 1
#   install-deps.sh wish PACKAGE...      the same, but exit 0 for an ordinary
#                                        user, whose target can do without
set -euo pipefail

mode=${1:?usage: install-deps.sh require|wish PACKAGE...}
shift

# The program that a package is wanted for. Asking for the program and not for
# the package lets a build from source or another distribution satisfy us too.
program_of() {
	case $1 in
	fio) echo fio ;;
	qemu-system-x86) echo qemu-system-x86_64 ;;
	*)
		echo "install-deps: no program is known for package $1; add it to program_of" >&2
		exit 2
		;;
	esac
}

missing=()
for package in "$@"; do
	program=$(program_of "$package")
	command -v "$program" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "missing: ${missing[*]}. Install with: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	[ "$mode" = wish ] && exit 0
	exit 1
fi
if ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]} (Debian's names), and there is no apt-get here; install them with this system's packager" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
	echo "+ $*"
	"$@" >"$log" 2>&1 || {
		cat "$log" >&2
		echo "install-deps: failed: $*" >&2
		exit 1
	}
}
export DEBIAN_FRONTEND=noninteractive
run apt-get update
run apt-get install --yes --no-install-recommends "${missing[@]}"
for package in "${missing[@]}"; do
	program=$(program_of "$package")
	command -v "$program" >/dev/null || {
		echo "install-deps: $package is installed but $program is not on the PATH" >&2
		exit 1
	}
done
echo "installed: ${missing[*]}"
