#!/bin/sh
# Prints the newest run folder of a name: a run whose folder exists already gets name-2, name-3, ...
#
#   scripts/newest_run.sh NAME
set -eu
find runs -maxdepth 1 -type d \( -name "$1" -o -name "$1-[0-9]*" \) -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-
