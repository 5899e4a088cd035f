#!/usr/bin/env bash
# The power-cut machine: builds the guest, fetches its kernel, runs the rig.
#
#   powercut.sh smoke               the planted bugs, then CUTS cuts (default 3): for CI
#   powercut.sh campaign            CUTS cuts from SEED on (default 500, random)
#   powercut.sh replay DIRECTORY    reach the verdict of a failure again
#
# Environment: CUTS, SEED, WORKLOAD (node, the default, or standin), REDOUBT (a
# static binary to judge instead of the one of this tree), KERNEL (an image with
# NVMe and a serial console built in, instead of Debian's), ACCEL (say kvm),
# RIG_FLAGS (more flags for the rig: `go run ./internal/powercut/rig -h`).
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:?usage: powercut.sh smoke|campaign|replay DIRECTORY}
cache=.cache/powercut
mkdir -p "$cache"

scripts/install-deps.sh wish qemu-system-x86
if ! command -v qemu-system-x86_64 >/dev/null; then
	[ "$mode" = smoke ] || exit 1
	echo "powercut: skipped, there is no qemu-system-x86_64 here"
	exit 0
fi

# The package that holds the kernel of Debian's cloud image, as apt knows it.
kernel_package() {
	apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}

# Downloads that package to the current directory, quietly.
download_kernel() {
	local package
	package=$(kernel_package)
	[ -n "$package" ] || return 1
	echo "fetching $package (about 27 MB, unpacked below $cache, not installed)"
	apt-get -o APT::Sandbox::User=root download "$package" >log 2>&1
}

# Unpacks the kernel into the cache, once. The lists of packages may be missing or
# name a version that is gone; then root fetches them anew.
fetch_kernel() {
	[ -s "$cache/vmlinuz" ] && return
	local dir
	dir=$(mktemp -d "$PWD/$cache/kernel.XXXXXX")
	pushd "$dir" >/dev/null
	if ! download_kernel; then
		if [ "$(id -u)" -eq 0 ]; then
			echo "+ apt-get update"
			apt-get update >log 2>&1
		fi
		download_kernel || {
			cat log >&2 2>/dev/null || true
			echo "powercut: can't fetch linux-image-cloud-amd64; run apt-get update as root, or set KERNEL to an image with NVMe and a serial console built in" >&2
			exit 1
		}
	fi
	dpkg -x ./*.deb unpacked
	popd >/dev/null
	if ! grep -qx CONFIG_BLK_DEV_NVME=y "$dir"/unpacked/boot/config-*; then
		echo "powercut: this kernel has NVMe as a module; set KERNEL to an image that has it built in" >&2
		exit 1
	fi
	cp "$dir"/unpacked/boot/vmlinuz-* "$cache/vmlinuz.new"
	mv "$cache/vmlinuz.new" "$cache/vmlinuz"
	rm -rf "$dir"
}

kernel=${KERNEL:-}
if [ -z "$kernel" ]; then
	fetch_kernel
	kernel=$cache/vmlinuz
fi

echo "building the guest's init, its redoubt and the rig"
redoubt=${REDOUBT:-}
if [ -z "$redoubt" ]; then
	redoubt=$cache/redoubt
	CGO_ENABLED=0 go build -tags giouring -ldflags='-checklinkname=0 -s -w' -o "$redoubt" ./cmd/redoubt
fi
CGO_ENABLED=0 go build -ldflags='-s -w' -o "$cache/init" ./internal/powercut/init
go build -o "$cache/rig" ./internal/powercut/rig
files=init=$cache/init,redoubt=$redoubt

workload=${WORKLOAD:-node}

read -ra extra <<<"${RIG_FLAGS:-}"
rig() {
	"$cache/rig" -kernel "$kernel" -initrd "$cache/initrd" -files "$files" \
		-keep "$cache" -accel "${ACCEL:-}" "$@" ${extra[@]+"${extra[@]}"}
}

case $mode in
smoke)
	rig -selftest -workload "$workload" ${SEED:+-seed "$SEED"}
	rig -workload "$workload" -cuts "${CUTS:-3}" ${SEED:+-seed "$SEED"}
	;;
campaign)
	rig -workload "$workload" -cuts "${CUTS:-500}" ${SEED:+-seed "$SEED"}
	;;
replay)
	rig -replay "${2:?usage: powercut.sh replay DIRECTORY}"
	;;
*)
	echo "powercut: no mode $mode" >&2
	exit 1
	;;
esac
