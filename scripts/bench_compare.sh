#!/usr/bin/env bash
# Trains the bench models with this trainer and with PyTorch in turn, and writes tables and JSON to build/bench-compare.
# SIZES=tiny,medium,gpt2 KINDS=dense,mot,switch SAMPLES=5 THREADS=0 MODES=eager,compile say what; PYTHON=... names an
# interpreter that has torch already. Without it, torch is installed into a virtual environment under build/.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=${1:-build/cpu}/bench/bench_train
SIZES=${SIZES:-tiny,medium,gpt2} KINDS=${KINDS:-dense,mot,switch} SAMPLES=${SAMPLES:-5} THREADS=${THREADS:-0}
MODES=${MODES:-eager,compile}
KINDS=${KINDS//moe/switch}  # token choice is called after its first paper
out=build/bench-compare
mkdir -p "$out"

has_torch() { "$1" -c 'import torch' 2>/dev/null; }

# A current torch by pip; else Debian's, with its library told not to take its slowest kernels.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        has_torch "$PYTHON" || { echo "PYTHON=$PYTHON has no torch" >&2; return 1; }
        return
    fi
    PYTHON=build/pytorch/bin/python
    if has_torch "$PYTHON"; then return; fi
    echo "installing torch into build/pytorch (some GB)" >&2
    if python3 -m venv build/pytorch && build/pytorch/bin/pip install --quiet torch && has_torch "$PYTHON"; then
        return
    fi
    PYTHON=/usr/bin/python3
    if has_torch "$PYTHON"; then
        echo "pip cannot install torch: the comparison is with Debian's" >&2
        if grep -qw avx512f /proc/cpuinfo; then : "${OPENBLAS_CORETYPE:=SkylakeX}"; fi
        export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-Haswell}
        return
    fi
    echo "there is no torch: pip cannot install it; try: apt-get install python3-torch" >&2
    return 1
}

compare() {  # SIZE BATCH KINDS
    local models
    models=$(printf '%s' "$3" | sed "s/[^,][^,]*/$1_&/g")
    echo "== $1, batch $2: $3"
    "$bench" --models "$models" --batch "$2" --samples "$SAMPLES" --threads "$THREADS" --bound --pytorch "$PYTHON" \
        --modes "$MODES" --json "$out/$1-b$2.json" | tee "$out/$1-b$2.txt" || failed=1
}

# Groups of MoT are 32 sequences: it needs batches of 32. On the small ones the others are compared.
without_mot() { printf '%s' "$KINDS" | tr , '\n' | grep -vx mot | paste -sd, || true; }

find_python
failed=
for size in ${SIZES//,/ }; do
    case $size in
        tiny) compare tiny 32 "$KINDS" ;;
        medium) others=$(without_mot)
                if [ -n "$others" ]; then compare medium 8 "$others"; fi
                compare medium 32 "$KINDS" ;;
        gpt2) others=$(without_mot)
              if [ -n "$others" ]; then compare gpt2 4 "$others"; fi
              if [ "$others" != "$KINDS" ]; then compare gpt2 32 mot; fi ;;
        *) echo "SIZES=$size is not known: choose among tiny, medium, gpt2" >&2; exit 2 ;;
    esac
done
[ -z "$failed" ]
