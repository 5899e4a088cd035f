#!/usr/bin/env bash
# Runs every fuzz target of the module for a while, one after the other.
#
#   fuzz.sh [DURATION] [TARGET-REGEXP]    default 10s, all targets
#
# A finding is written to the package's testdata/fuzz/TARGET: commit it with the
# fix, and it is a regression test from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

duration=${1:-10s}
only=${2:-.}
flags=(-tags invariants)

mapfile -t targets < <(git grep --untracked -hoE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | awk '{ print $2 }' | sort -u | grep -E "$only" || true)
if [ ${#targets[@]} -eq 0 ]; then
	echo "fuzz: no target matches '$only'" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
count=0

fuzz_one() { # directory, target
	# Without a bound the engine spends its time on making inputs that it finds
	# interesting shorter, a minute for each.
	go test "${flags[@]}" -run '^$' -fuzz "^$2\$" -fuzztime "$duration" -fuzzminimizetime 200x "./$1" >"$log" 2>&1
}

for target in "${targets[@]}"; do
	while read -r file; do
		dir=$(dirname "$file")
		printf '%s %s: ' "$dir" "$target"
		# The fuzzing engine sometimes reports its own deadline as a failure
		# (golang.org/issue/48591): no input was found then, so ask once more.
		if ! fuzz_one "$dir" "$target" && ! {
			grep -q 'context deadline exceeded' "$log" &&
				! grep -q 'Failing input written' "$log" &&
				fuzz_one "$dir" "$target"
		}; then
			echo FAILED
			cat "$log" >&2
			echo "replay: go test ${flags[*]} -run '$target' ./$dir" >&2
			exit 1
		fi
		grep -E '^fuzz: elapsed' "$log" | tail -1 | sed 's/^fuzz: //' || echo ok
		count=$((count + 1))
	done < <(git grep --untracked -lE "^func $target\(" -- '*_test.go')
done
echo "fuzz: $count targets, $duration each, nothing found"
