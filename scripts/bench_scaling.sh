#!/usr/bin/env bash
# Measures how the cost of a training step grows with each size, and plots it: table, JSON and plot in
# build/bench-scaling. SWEEPS=T,V,... SAMPLES=5 THREADS=0 say what; BUSY=1 is for a machine that other programs keep
# busy: one thread, and its processor time instead of the wall clock.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/bench-scaling
mkdir -p "$out"
words=(--samples "${SAMPLES:-5}" --threads "${THREADS:-0}" --json "$out/scaling.json")
if [ -n "${SWEEPS:-}" ]; then words+=(--sweeps "$SWEEPS"); fi
if [ -n "${BUSY:-}" ]; then words+=(--busy); fi
code=0
"${1:-build/cpu}/bench/bench_scaling" "${words[@]}" | tee "$out/scaling.txt" || code=$?
scripts/plot_scaling.sh "$out/scaling" "$out/scaling.txt"
exit $code
