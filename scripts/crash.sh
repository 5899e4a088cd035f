#!/usr/bin/env bash
# Runs the property tests of every package that has some, with many more
# sequences than CI affords.
#
#   crash.sh [CHECKS] [TEST-REGEXP]
#
# A failure prints its seed (-rapid.seed) and the file that replays it
# (-rapid.failfile).
set -euo pipefail
cd "$(dirname "$0")/.."

checks=${1:-20000}
only=${2:-.}

mapfile -t packages < <(git grep --untracked -lF '"pgregory.net/rapid"' -- '*_test.go' | xargs -rn1 dirname | sort -u | sed 's|^|./|')
if [ ${#packages[@]} -eq 0 ]; then
	echo "crash: no package has a property test" >&2
	exit 1
fi
echo "properties of: ${packages[*]}"
set -x
go test -tags giouring,invariants -ldflags=-checklinkname=0 -timeout 0 \
	-run "$only" "${packages[@]}" -rapid.checks="$checks"
