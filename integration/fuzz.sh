#!/bin/sh
# Runs every fuzz target of both modules for the time given, one after another.
set -eu
time=${1:-60s}
cd "$(dirname "$0")/.."

for module in . integration; do
	packages=$(go -C $module list ./...)
	for package in $packages; do
		tests=$(go -C $module test -list '^Fuzz' "$package")
		for target in $(echo "$tests" | grep '^Fuzz'); do
			echo "$package $target"
			# Without a limit, making a find smaller takes most of the time.
			go -C $module test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "$package"
		done
	done
done
