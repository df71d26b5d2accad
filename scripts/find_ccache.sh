#!/usr/bin/env bash
# find_ccache.sh COMPILER...: the path of ccache, if it is there and can compile (its folder may not be writable).
command -v ccache > /dev/null || exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
: > "$folder/empty.cpp"
if ccache "$@" -c "$folder/empty.cpp" -o "$folder/empty.o" > /dev/null 2>&1; then command -v ccache; fi
exit 0
