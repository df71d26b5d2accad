#!/usr/bin/env bash
# `make demo`: real English prose, tokenised by an own BPE, trains a MoT model and its dense twin side by side, each on
# half of the cores; shows and plots both loss curves, then lets both continue the same prompts.
#
# Environment: LONG=1        trains for hours instead of minutes: until MoT's validation loss has been lower three times
#                            in a row, or the budget ends
#              MINUTES=N     of training, default 5 (LONG=1: 360)
#              DEMO_DIR=DIR  default runs/demo; a finished demo there is replaced
# Both models see the same batches, have equal FLOPs a token (but for MoT's mixing), the same learning rate and
# schedule.
set -euo pipefail
cd "$(dirname "$0")/.."
LONG=${LONG:-} DEMO_DIR=${DEMO_DIR:-runs/demo}
MINUTES=${MINUTES:-$([ -n "$LONG" ] && echo 360 || echo 5)}
train=build/cpu/train_mot
stage() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }
say() { printf '%s\n' "$*"; }

stage 'text: English prose from Debian packages'
data/debian_prose

stage 'tokens: a BPE of 4,096 tokens, trained on that text'
data=$DEMO_DIR/data
if [ ! -f "$data/dataset.json" ]; then
    mkdir -p "$DEMO_DIR"
    data/prepare --out "$data" --train-bpe 4096 --val-fraction 0.03 data/cache/debian_prose.txt
fi

cores=$(nproc)
threads=$((cores > 1 ? cores / 2 : 1))
# half N COMMAND...: becomes the command, on the first (0) or second (1) half of the cores if it may choose them. For a
# background shell only: exec leaves no shell in between, so that signals reach the training itself.
half() {
    local first=$(($1 * threads)) cpus; shift
    cpus=$first-$((first + threads - 1))
    if [ "$cores" -gt 1 ] && taskset -c "$cpus" true 2> /dev/null; then exec taskset -c "$cpus" "$@"; fi
    exec "$@"
}
# run_model NUMBER NAME STEPS DIR EXTRA...: one training in the background; output goes to DIR.txt.
run_model() {
    local number=$1 name=$2 steps=$3 dir=$4; shift 4
    half "$number" $train --data "$data" --run-dir "$dir" --config "configs/tiny_$name.toml" --steps "$steps" \
        --threads "$threads" "$@" > "$dir.txt" 2>&1 &
}
wait_for() { wait "$1" || { echo "demo: a training failed; its last lines ($2.txt):"; tail -n 5 "$2.txt"; exit 1; }; }

stage 'speed: 40 steps of each model decide how many fit into the time'
quiet=(--warmup-steps 5 --save-interval 0 --eval-interval 0)
rm -rf "$DEMO_DIR/probe"; mkdir -p "$DEMO_DIR/probe"
run_model 0 dense 40 "$DEMO_DIR/probe/dense" "${quiet[@]}"; dense_pid=$!
run_model 1 mot 40 "$DEMO_DIR/probe/mot" "${quiet[@]}"; mot_pid=$!
wait_for $dense_pid "$DEMO_DIR/probe/dense"; wait_for $mot_pid "$DEMO_DIR/probe/mot"
seconds=$(grep -ho '"seconds":[0-9.]*' "$DEMO_DIR"/probe/*/log.jsonl | sed 's/.*://' | sort -g | tail -n 1)
steps=$(awk -v s="$seconds" -v m="$MINUTES" 'BEGIN { n = int(m * 60 / (s / 40) / 50) * 50; print n < 100 ? 100 : n }')
interval=$(( steps / 25 > 20 ? steps / 25 : 20 ))
say "the slower of the two makes 40 steps in $seconds s: $steps steps each"

stage "training: dense and MoT at once, $steps steps of 4,096 tokens"
rm -rf "$DEMO_DIR/dense" "$DEMO_DIR/mot"
flags=(--warmup-steps $((steps / 20)) --log-interval 10 --eval-interval "$interval"
       --statistics-interval "$interval" --save-interval "$((interval * 5))")
run_model 0 dense "$steps" "$DEMO_DIR/dense" "${flags[@]}"; dense_pid=$!
run_model 1 mot "$steps" "$DEMO_DIR/mot" "${flags[@]}"; mot_pid=$!
trap 'kill -TERM $dense_pid $mot_pid 2> /dev/null || true; wait' INT TERM

last_field() { grep -o "\"$1\":[-+0-9.eE]*" "$2/log.jsonl" 2> /dev/null | tail -n 1 | sed 's/.*://'; }
# mot_ahead: MoT's last three validations are all below the dense twin's of the same steps.
mot_ahead() {
    paste <(grep -o '"val_loss":[0-9.]*' "$DEMO_DIR/dense/log.jsonl" | sed 's/.*://') \
          <(grep -o '"val_loss":[0-9.]*' "$DEMO_DIR/mot/log.jsonl" | sed 's/.*://') |
        awk 'NF == 2 { n = $2 < $1 ? n + 1 : 0 } END { exit !(n >= 3) }'
}
shown=$SECONDS
while kill -0 $dense_pid 2> /dev/null || kill -0 $mot_pid 2> /dev/null; do
    sleep 2
    if [ $((SECONDS - shown)) -ge "$([ -n "$LONG" ] && echo 600 || echo 45)" ]; then
        shown=$SECONDS
        scripts/plot_runs.sh - dense="$DEMO_DIR/dense" mot="$DEMO_DIR/mot"
        say "dense: $(grep '^step' "$DEMO_DIR/dense.txt" | tail -n 1)"
        say "mot:   $(grep '^step' "$DEMO_DIR/mot.txt" | tail -n 1)"
        if [ -n "$LONG" ] && mot_ahead; then
            say 'MoT has been ahead at three validations in a row: stopping both'
            kill -TERM $dense_pid $mot_pid
        fi
    fi
done
for name in dense mot; do
    pid=${name}_pid code=0
    wait "${!pid}" || code=$?
    if [ $code != 0 ] && [ $code != 143 ]; then
        echo "demo: training the $name model failed:"
        tail -n 5 "$DEMO_DIR/$name.txt"
        exit 1
    fi
done
trap - INT TERM

stage 'results'
scripts/plot_runs.sh - dense="$DEMO_DIR/dense" mot="$DEMO_DIR/mot"
scripts/plot_runs.sh "$DEMO_DIR/losses" dense="$DEMO_DIR/dense" mot="$DEMO_DIR/mot"
printf '\n%-8s %12s %12s %14s %12s\n' model 'parameters' 'val. loss' 'perplexity' 'minutes'
for name in dense mot; do
    printf '%-8s %12s %12s %14s %12s\n' $name \
        "$(sed -n 's/^  parameters  *\([0-9.]*[kMG]\).*/\1/p' "$DEMO_DIR/$name.txt" | head -n 1)" \
        "$(last_field val_loss "$DEMO_DIR/$name")" "$(last_field val_perplexity "$DEMO_DIR/$name")" \
        "$(awk -v s="$(last_field seconds "$DEMO_DIR/$name")" 'BEGIN { printf "%.1f", s / 60 }')"
done
say
say "Minutes of training usually end in a tie: in the authors' own curves MoT overtakes its dense twin only after about"
say '2 % of 250,000 steps, and their gap keeps growing after that. `make demo LONG=1` trains on.'

stage 'text from both, temperature 0.8'
for name in dense mot; do
    say "--- $name"
    $train generate --checkpoint "$DEMO_DIR/$name" --prompt 'The people' --prompt 'It was' \
        --prompt 'She looked at' --max-tokens 50 --temperature 0.8 --seed 3
done
say
say "all of it is in $DEMO_DIR: losses.png, dense/, mot/ (checkpoints, log.jsonl, configuration)"
