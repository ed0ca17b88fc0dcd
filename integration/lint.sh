#!/bin/sh
# Checks the form of all code in both modules. Says all it finds before failing.
set -u
cd "$(dirname "$0")/.." || exit
root=$PWD
status=0

unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
	echo "not formatted by gofmt: $unformatted" >&2
	status=1
fi

# The tools are pinned in the integration module, and check both.
tools=$(mktemp -d) || exit
trap 'rm -rf "$tools"' EXIT
go -C integration build -o "$tools/" \
	honnef.co/go/tools/cmd/staticcheck github.com/kisielk/errcheck || exit

for module in . integration; do
	cd "$root/$module" || exit
	go vet ./... || status=1
	"$tools/staticcheck" ./... || status=1
	# What is only read may be closed unchecked, with a defer.
	"$tools/errcheck" -ignoretests -exclude "$root/integration/errcheck.txt" ./... |
		grep -v 'defer .*Close()' && status=1
done

cd "$root" || exit
shellcheck integration/*.sh integration/images/programs/*/*.sh .ci/run || status=1
exit $status
