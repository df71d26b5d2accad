#!/usr/bin/env bash
# Draws the table of bench_scaling with gnuplot: scripts/plot_scaling.sh OUT TABLE
#
#   OUT.png, OUT.svg   a panel for each sweep, both axes logarithmic: points as measured (whiskers: fastest and
#                      slowest), and the line of what the formula predicts. Where they run in parallel, no cost hides.
set -euo pipefail
out=$1 table=$2
command -v gnuplot > /dev/null || { echo "plot_scaling: gnuplot is missing: no plot"; exit 0; }

# Blocks of the table in its order, without those in which no sample counted: gnuplot numbers only blocks with points.
panels= blocks=0
while IFS=$'\t' read -r name text; do
    panels+="set title '$text'; set xlabel '$name';
        plot '$table' index $blocks using 1:9:xtic(1) with lines lw 2 title 'formula',
             '' index $blocks using 1:2:3:4 with yerrorbars pt 7 title 'measured';"
    blocks=$((blocks + 1))
done < <(awk '/^# [A-Za-z_]*: / { name = $2; sub(/:$/, "", name); text = $0; sub(/^# [A-Za-z_]*: /, "", text) }
              /^ / && name != "" { print name "\t" text; name = "" }' "$table")
[ "$blocks" != 0 ] || { echo "plot_scaling: no points in $table"; exit 0; }

rows=$(((blocks + 2) / 3))
for kind in png svg; do
    size=1200,$((rows * 330))
    terminal="pngcairo size $size font 'sans,10'"
    [ $kind = svg ] && terminal="svg size $size font 'sans,11' background 'white'"
    gnuplot -e "set terminal $terminal; set output '$out.$kind'; set termoption noenhanced; set grid; set key top left;
                set logscale x 2; set logscale y; set offsets graph 0.1, graph 0.1; set ylabel 'ms a step';
                set multiplot layout $rows,3; $panels unset multiplot"
done
echo "wrote $out.png and $out.svg"
