#!/usr/bin/env bash
# `make gpu-check`: everything that only a GPU can tell, in one report to attach to an issue.
#
# Builds for the GPU; runs the tests of all kernels at all sizes, the golden files, and short trainings that are
# compared with the CPU backend; runs compute-sanitizer if there is one; times every op of the bench models against its
# floor, and prints tokens/s and MFU. Under Nsight Systems (nsys profile) every op and block shows as an NVTX range.
#
# Environment: BACKEND=emu  the same on the emulated GPU, with tiny models: how this script itself is tested
#              REPORT=FILE  where the report goes (gpu_check.json)
# Exit code 0: all passed; 1: something failed; 2: no usable GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
backend=${BACKEND:-cuda} report=${REPORT:-gpu_check.json}
build=build/$backend
kernel_tests=$(make list-kernel-tests)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=() failed=0

text() {  # a JSON string
    printf '%s\n' "$1" | tr -d '\r' | tr '\t' ' ' | paste -sd ' ' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&"/'
}
phase() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }
# result NAME CODE DETAIL
result() {
    results+=("{\"name\": $(text "$1"), \"ok\": $([ "$2" = 0 ] && echo true || echo false), \"detail\": $(text "$3")}")
    [ "$2" = 0 ] || failed=$((failed + 1))
    printf '  %-28s %-6s %s\n' "$1" "$([ "$2" = 0 ] && echo ok || echo FAILED)" "$3"
}
# check NAME COMMAND...: the last line of what it says is the detail; all of it is shown if it fails. A program of which
# no test ran fails too: "[  PASSED  ] 0 tests.", "0 passed, 0 failed, 9 skipped".
check() {
    local name=$1 code
    shift
    "$@" > "$work/log" 2>&1 < /dev/null
    code=$?
    grep -q '^\[  PASSED  \] [1-9]\|^[1-9][0-9]* passed, ' "$work/log" || code=1
    result "$name" $code "$(grep 'PASSED\|FAILED\|SKIPPED\|skipped$' "$work/log" | tail -n 3)"
    [ $code = 0 ] || tail -n 40 "$work/log" | sed 's/^/    | /'
}

phase "build"
make BACKEND=cpu train_mot || exit 1
make BACKEND="$backend" all kernel-tests "$build/test/test_backends" "$build/bench/roofline" || exit 1
device=$("$build/train_mot" --version | sed -n 's/^backend *//p')
echo "  $device"
"$build/test/test_memory" > "$work/log" 2>&1 || { grep -m 1 "needs\|CUDA says" "$work/log"; exit 2; }
smi=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader \
    2> /dev/null)

phase "kernels"
for name in $kernel_tests; do check "$name" "$build/test/$name" --gtest_brief=1; done
check golden "$build/test_mot" --golden dev/test/golden/*.safetensors
check "training as on the CPU" "$build/test/test_backends" --gtest_brief=1

phase "compute-sanitizer"
if [ "$backend" = cuda ] && command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck; do
        for name in $kernel_tests; do
            TEST_SIZES=small check "$tool $name" \
                compute-sanitizer --tool $tool --error-exitcode 1 "$build/test/$name" --gtest_brief=1
        done
    done
else
    echo "  not run: there is no compute-sanitizer here"
fi

phase "speed"
if [ "$backend" = cuda ]; then  # 65,536 tokens at a time
    models=(dense_medium mot_medium_32E dense_base mot_base_32E) batch=(--micro-batch 256)
else
    models=(tiny_dense tiny_mot)
    batch=(--micro-batch 4 --group-size 4 --experts 4 --d-model 32 --heads 2 --context 32 --vocab-size 512
        --measured-steps 1)
fi
echo "  MFU = FLOPs that the step's ops count / seconds / the datasheet's dense peak"
speeds=()
for model in "${models[@]}"; do
    for precision in bf16-mixed fp32; do
        if "$build/bench/roofline" --config "configs/$model.toml" "${batch[@]}" --precision $precision --measure \
            --json "$work/speed.json" > "$work/speed.txt" 2>&1; then
            echo "  $model, $precision"
            sed 's/^/    /' "$work/speed.txt"
            speeds+=("{\"model\": \"$model\", \"result\": $(cat "$work/speed.json")}")
        else
            result "speed of $model, $precision" 1 "$(tail -n 1 "$work/speed.txt")"
        fi
    done
done

join() { local IFS=,; echo "$*"; }
{
    echo "{\"commit\": $(text "$(git describe --always --dirty 2> /dev/null)"), \"backend\": \"$backend\","
    echo " \"device\": $(text "$device"), \"nvidia_smi\": $(text "$smi"), \"date\": \"$(date -u +%FT%TZ)\","
    echo " \"checks\": [$(join ${results[@]+"${results[@]}"})],"
    echo " \"speed\": [$(join ${speeds[@]+"${speeds[@]}"})]}"
} > "$report"
phase "result"
echo "  ${#results[@]} checks, $failed failed; the report is $report"
[ $failed = 0 ]
