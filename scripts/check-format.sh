#!/usr/bin/env bash
# Fails when a Go file that git tracks, or would track, is not gofmt'd.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard -- '*.go')
present=()
for f in "${files[@]}"; do
	[ -e "$f" ] && present+=("$f")
done
[ ${#present[@]} -gt 0 ] || {
	echo "no Go files found: not a git work tree?" >&2
	exit 1
}
bad=$(gofmt -l "${present[@]}")
if [ -n "$bad" ]; then
	echo "not gofmt'd; run: gofmt -w" $bad >&2
	exit 1
fi
echo "${#present[@]} files are gofmt'd"
