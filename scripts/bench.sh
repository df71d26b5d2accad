#!/usr/bin/env bash
# Runs every benchmark that `make bench` has built, each program in turn.
set -eu
cd "$(dirname "$0")/.."
for source in dev/bench/*.cpp; do
    [ -e "$source" ] || { echo "there are no benchmarks in dev/bench"; exit 0; }
    case $source in
        dev/bench/roofline.cpp) continue ;;       # `make gpu-report` shows it
        dev/bench/bench_scaling.cpp) continue ;;  # `make bench-scaling`, some minutes on its own
    esac
    "${1:-build/cpu}/bench/$(basename "$source" .cpp)"
done
