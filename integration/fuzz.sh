#!/bin/sh
# Runs every fuzz target of both modules for the time given, one after another,
# and goes on after one that fails.
set -eu
time=${1:-60s}
cd "$(dirname "$0")/.."
failed=

for module in . integration; do
	packages=$(go -C $module list ./...)
	for package in $packages; do
		tests=$(go -C $module test -list '^Fuzz' "$package")
		for target in $(echo "$tests" | grep '^Fuzz'); do
			echo "$package $target"
			# Without a limit, making a find smaller takes most of the time.
			go -C $module test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "$package" ||
				failed="$failed $target"
		done
	done
done
if [ -n "$failed" ]; then
	echo "failed:$failed" >&2
	exit 1
fi
