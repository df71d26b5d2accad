#!/usr/bin/env bash
# The same learning-rate search for the demo's two models: every rate for both, each run on half of the cores.
#
# scripts/lr_search.sh DATA_DIR STEPS RATE...        e.g. runs/demo/data 300 2e-3 4e-3 6e-3 1e-2
# Prints one line per rate: final validation losses of the dense and of the MoT model. Runs stay in runs/lr_search/.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
data=$1 steps=$2; shift 2
out=runs/lr_search threads=$(( $(nproc) > 1 ? $(nproc) / 2 : 1 ))
rm -rf "$out"; mkdir -p "$out"
printf '%-8s %12s %12s\n' lr dense mot
for lr in "$@"; do
    pids=()
    for name in dense mot; do
        ./train_mot --data "$data" --run-dir "$out/$name-$lr" --config "configs/tiny_$name.toml" --steps "$steps" \
            --warmup-steps $((steps / 20)) --lr "$lr" --threads "$threads" --eval-interval "$steps" --eval-batches 20 \
            --statistics-interval 0 --save-interval 0 > "$out/$name-$lr.txt" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || true; done  # a run that diverged shows as "failed" below
    loss() { sed -n 's/.*"val_loss":\([0-9.]*\).*/\1/p' "$out/$1-$lr/log.jsonl" 2> /dev/null | tail -n 1; }
    dense=$(loss dense) mot=$(loss mot)
    printf '%-8s %12.6s %12.6s\n' "$lr" "${dense:-failed}" "${mot:-failed}"
done
