#!/usr/bin/env bash
# Draws the validation losses of two runs with gnuplot: scripts/plot_runs.sh OUT NAME=RUN_DIR NAME=RUN_DIR ...
#
#   OUT.png, OUT.svg   by steps (left) and by training time (right)
#   OUT = -            one text plot by steps on the terminal
set -euo pipefail
out=$1; shift
command -v gnuplot > /dev/null || { echo "plot_runs: gnuplot is missing: no plot"; exit 0; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

# values FIELD LOG: "step seconds value" of every log line that has the field.
values() {
    [ -f "$2" ] || return 0
    awk -v field="$1" '
        function number(key) {
            if (!match($0, "\"" key "\":[-+0-9.eE]+")) return ""
            return substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
        }
        { v = number(field); s = number("step"); if (v != "" && s != "") print s, number("seconds"), v }' "$2"
}

by_step= by_time= text=
for pair in "$@"; do
    name=${pair%%=*} log=${pair#*=}/log.jsonl data=$work/${pair%%=*}
    values val_loss "$log" > "$data.val"
    values loss "$log" > "$data.train"
    [ -s "$data.val" ] && by_step+="${by_step:+, }'$data.val' using 1:3 with lines lw 2 title '$name'"
    [ -s "$data.val" ] && by_time+="${by_time:+, }'$data.val' using (\$2/60):3 with lines lw 2 title '$name'"
    [ -s "$data.train" ] && text+="${text:+, }'$data.train' using 1:3 with lines title '$name'"
done

if [ "$out" = - ]; then
    [ -n "$text" ] || exit 0
    gnuplot -e "set terminal dumb size 100,22; set xlabel 'step'; set ylabel 'training loss'; plot $text" | tr -d '\f'
    exit 0
fi
[ -n "$by_step" ] || { echo "plot_runs: no validation losses in the logs"; exit 0; }
for kind in png svg; do
    terminal="pngcairo size 1200,480 font 'sans,11'"
    [ $kind = svg ] && terminal="svg size 1200,480 font 'sans,12' background 'white'"
    gnuplot -e "set terminal $terminal; set output '$out.$kind'; set grid; set multiplot layout 1,2;
                set ylabel 'validation loss (nats per token)'; set xlabel 'step'; plot $by_step;
                set xlabel 'minutes of training'; plot $by_time; unset multiplot"
done
echo "wrote $out.png and $out.svg"
