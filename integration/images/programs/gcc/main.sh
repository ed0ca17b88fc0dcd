#!/bin/sh
# Compiles a program, and runs it.
set -eu
gcc -O2 -o /tmp/main /app/main.c -lm
exec /tmp/main plum pear fig
