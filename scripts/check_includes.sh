#!/usr/bin/env bash
# Includes point down: a file sees its own room of llmc/ and the floors below it, as docs/design.md draws them.
# Prints every include that does not, and exits with 1 if there is one.
set -u
cd "$(dirname "$0")/.." || exit 1

# Bottom up. Rooms on one floor do not see each other: tokens know no ops, and ops know no tokens.
floors='base
data ops
measure comm
model
step
checkpoint
infer
planner
train'
# Headers of a backend are for the backend itself and for what moves its memory.
backend_users='^llmc/(ops/(cpu|cuda)/|comm/nccl\.cpp$)'
# The one door from the product into dev/: CUDA's words, when a CPU executes the kernels.
door='llmc/ops/cuda/gpu.cuh'

mapfile -t files < <(find llmc data dev/golden ./*.cu -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' |
    sed 's|^\./||' | sort)
includes=$(grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "${files[@]}" |
    sed -E 's/^([^:]*):([0-9]*):[^"]*"([^"]*)".*/\1 \2 \3/')

problems=$(awk -v floors="$floors" -v backend_users="$backend_users" -v door="$door" '
    function room(path,  part) { return split(path, part, "/") > 2 && part[1] == "llmc" ? part[2] : "" }
    function report(what) { print $1 ":" $2 ": includes " $3 ": " what }
    BEGIN {
        count = split(floors, line, "\n")
        for (i = 1; i <= count; i++) { n = split(line[i], name, " "); for (j = 1; j <= n; j++) floor[name[j]] = i }
    }
    { from = room($1); to = room($3) }
    from != "" && !(from in floor) { report("llmc/" from " is not in the table of floors"); next }
    to == "" && from != "" { if ($3 !~ /^dev\/emu\// || $1 != door) report("not a file of llmc/"); next }
    to == "" { next }
    !(to in floor) { report("llmc/" to " is not in the table of floors"); next }
    from != "" && from != to && floor[to] >= floor[from] { report("llmc/" from " is not above llmc/" to) }
    $3 ~ /^llmc\/ops\/(cpu|cuda)\// && $1 !~ backend_users { report("of a backend: llmc/ops/ops.h is what others see") }
' <<< "$includes")

# Inside a room too: no two files (a header and its source count as one) need each other, directly or by others. But
# ops.h and comm.h are contracts, which the files below them implement.
circles=$(awk '$1 !~ /^llmc\/(ops|comm)\// {
        sub(/\.[a-z]*$/, "", $1); sub(/\.[a-z]*$/, "", $3)
        if ($1 != $3) print $3, $1
    }' <<< "$includes" |
    tsort 2>&1 > /dev/null | sed 's/^tsort: -: /circle of includes: /; s/^tsort: /  /')

[ -z "$problems$circles" ] && { echo "$(wc -l <<< "$includes") includes point down"; exit 0; }
printf '%s\n' "$problems" "$circles" | grep .
exit 1
