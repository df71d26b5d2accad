#!/usr/bin/env bash
# `make test`: builds everything, runs every test, then the tests again under ASan and UBSan; executes the CUDA kernels
# on the CPU (dev/emu) in three schedules, under ASan and UBSan, and under TSan; compiles them for GPUs.
#
# Environment: FILTER=word  only tests whose name holds the word (test_attention, golden, build)
#              ASAN=no      leaves the sanitized runs out
#              GPU=no       leaves everything about CUDA out
#              AVX2=yes     runs the CPU tests on the portable program's AVX2 kernels too; without it only where the
#                           processor has AVX-512, whose kernels the other tests run
#              EMU=full     only the emulated kernels, at all sizes and in more schedules (`make test-emu-full`)
#              DEPS=no      installs nothing
# The last line is `N passed, N failed, N skipped`; the lines before it name what failed or was skipped, and why.
# A test that crashes, hangs or ends without a verdict is a failure. Exit code 1 if anything failed or nothing ran.
#
# Time budget, on two cores from a fresh clone with a partly filled ccache (measured, minutes): CPU and the portable
# program 11, CPU with ASan and UBSan 17, emulated GPU 8, with ASan and TSan 11, nvcc 3: about 50 in all.
# `make test-emu-full` is for the nights.
set -u
cd "$(dirname "$0")/.." || exit 2
FILTER=${FILTER:-} ASAN=${ASAN:-} GPU=${GPU:-} AVX2=${AVX2:-} EMU=${EMU:-}
limit=${TEST_TIMEOUT:-600}  # seconds one test program may take

passed=0 failed=0 skipped=0
failures=() skips=()
fail() { failed=$((failed + 1)) failures+=("$1"); }
skip() { skipped=$((skipped + 1)) skips+=("$1"); }
wanted() { [[ $1 == *"$FILTER"* ]]; }
phase() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

# Waiting threads should not steal the cores of working ones: tests start many short parallel regions.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} OMP_DYNAMIC=${OMP_DYNAMIC:-false}
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export ASAN_OPTIONS=halt_on_error=1:detect_leaks=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:atexit_sleep_ms=0:report_signal_unsafe=0

# ending CODE: what an exit code says, for people.
ending() {
    if [ "$1" = 124 ]; then echo "took more than $limit s"
    elif [ "$1" -gt 128 ]; then echo "killed by SIG$(kill -l $(($1 - 128)) 2> /dev/null || echo "NAL $(($1 - 128))")"
    else echo "exit code $1"; fi
}

# excerpt LOG: where the sanitizer's report begins, or else the end.
excerpt() {
    local first
    first=$(grep -n -m 1 'ERROR: [A-Za-z]*Sanitizer\|runtime error:' "$1" | cut -d : -f 1)
    echo "  --- from $1"
    if [ -n "$first" ]; then sed -n "$first,$((first + 24))p" "$1"
    else grep -v '^\[ RUN\|^\[       OK\|^\[----------\]' "$1" | tail -n 40; fi | sed 's/^/  | /'
}

# report NAME PASSED FAILED SKIPPED SECONDS
report() { printf '  %-34s %4d passed, %d failed, %d skipped  (%d s)\n' "$@"; }

# Programs of which every test may be skipped, for lack of a tool or of another build; of all others some must run. With
# ASan only the tests are built, so those that start train_mot skip.
may_all_be_skipped=" test_backends test_comm_failure test_cpu_resident test_launch test_launch_gpu test_portable \
test_sharding test_train_ranks asan:test_evaluations asan:test_train_gpt asan:test_train_mot asan:test_train_mot_plan \
asan:test_train_health asan:test_train_stop asan:test_transition "

# run_gtest NAME PROGRAM [PREFIX...]: one GoogleTest program; the whole output goes to PROGRAM.log. That no test failed
# is not enough: GoogleTest says "[  PASSED  ] 0 tests." of a program that ran none.
run_gtest() {
    local name=$1 program=$2 log=$2.log code ok bad none start=$SECONDS line reason=
    shift 2
    if [ ! -x "$program" ]; then fail "$name: did not build"; return; fi
    timeout "$limit" "$@" "$program" --gtest_color=no > "$log" 2>&1 < /dev/null
    code=$?
    count() { sed -n "s/^\[  $1 *\] \([0-9]*\) tests\{0,1\}[.,].*/\1/p" "$log" | tail -n 1; }
    ok=$(count PASSED) bad=$(count FAILED) none=$(count SKIPPED)
    ok=${ok:-0} bad=${bad:-0} none=${none:-0}
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + none))
    while read -r line; do failures+=("$name: $line"); done < <(
        sed -n '/^\[  FAILED  \] [0-9]* tests\{0,1\},/,$ s/^\[  FAILED  \] \([^0-9].*\)/\1/p' "$log")
    while IFS= read -r line; do  # "file:line: Skipped", the reason, an empty line, the test's name
        case $line in
            *': Skipped') reason= ;;
            '[  SKIPPED ] '*' ms)')
                line=${line#'[  SKIPPED ] '}
                skips+=("$name: ${line% (*}: ${reason:-no reason given}") ;;
            ?*) reason=$line ;;
        esac
    done < "$log"
    if ! grep -q '^\[  PASSED  \]' "$log" || { [ $code != 0 ] && [ "$bad" = 0 ]; }; then
        bad=$((bad + 1))
        line=$(sed -n 's/^\[ RUN      \] //p' "$log" | tail -n 1)
        fail "$name: $(ending $code)${line:+, last in $line}"
    elif [ $((ok + bad + none)) = 0 ]; then
        bad=1
        fail "$name: no test ran"
    elif [ $((ok + bad)) = 0 ] && [[ $may_all_be_skipped != *" $name "* ]] &&
        [[ $may_all_be_skipped != *" ${name##*:} "* ]]; then
        bad=1
        fail "$name: every test was skipped"
    fi
    report "$name" "$ok" "$bad" "$none" $((SECONDS - start))
    [ "$bad" = 0 ] || excerpt "$log"
}

# run_golden NAME PROGRAM: every golden file on the linked backend; the program ends with its own counts.
run_golden() {
    local name=$1 program=$2 log=$2.log code counts line start=$SECONDS
    if [ ! -x "$program" ]; then fail "$name: $program did not build"; return; fi
    timeout "$limit" "$program" --golden dev/test/golden/*.safetensors > "$log" 2>&1 < /dev/null
    code=$?
    counts=$(tail -n 1 "$log" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    local ok=0 bad=0 none=0
    [ -z "$counts" ] || read -r ok bad none <<< "$counts"
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + none))
    [ "$bad" = 0 ] || failures+=("$name: $bad tensors, see $log")
    while IFS= read -r line; do skips+=("$name: $line"); done < <(head -n -1 "$log" | grep -i skipped)
    if [ -z "$counts" ] || { [ $code != 0 ] && [ "$bad" = 0 ]; }; then
        bad=$((bad + 1))
        fail "$name: $(ending $code), without a verdict"
    elif [ $((ok + bad)) = 0 ]; then
        bad=1
        fail "$name: nothing was compared"
    fi
    report "$name" "$ok" "$bad" "$none" $((SECONDS - start))
    [ "$bad" = 0 ] || excerpt "$log"
}

# run_variant NAME_PREFIX DIRECTORY
run_variant() {
    local prefix=$1 directory=$2 source name
    for source in dev/test/test_*.cpp; do
        name=$(basename "$source" .cpp)
        case $name in test_emu* | test_backends | test_launch_gpu) continue ;; esac  # of the emulated build
        [ -n "$prefix" ] && [ "$name" = test_portable ] && continue  # it starts one build's program, on every path
        if wanted "$name"; then run_gtest "$prefix$name" "$directory/test/$name"; fi
    done
    if wanted golden; then run_golden "${prefix}golden" "$directory/test_mot"; fi
}

# --- the CUDA kernels, executed by dev/emu
kernel_tests=$(make list-kernel-tests)
emulator_tests=$(cd dev/test && echo test_emu*.cpp | sed 's/\.cpp//g')

# run_kernels NAME_PREFIX DIRECTORY SEED [PREFIX...]: the tests of all kernels in one schedule.
run_kernels() {
    local prefix=$1 directory=$2 seed=$3 name
    shift 3
    for name in $kernel_tests; do
        if wanted "$name"; then EMU_SEED=$seed run_gtest "${prefix}seed $seed:$name" "$directory/test/$name" "$@"; fi
    done
}
run_emulator_tests() {  # NAME_PREFIX DIRECTORY [PREFIX...]
    local prefix=$1 directory=$2 name
    shift 2
    for name in $emulator_tests; do
        if wanted "$name"; then run_gtest "$prefix$name" "$directory/test/$name" "$@"; fi
    done
}
# Bugs planted on purpose, each of which must be caught: lines "ok NAME ..." and "FAILED NAME ...".
run_planted_bugs() {
    local line caught=0 missed=0 log=build/planted_bugs.log code
    wanted planted_bugs || return
    dev/test/emu_bugs.sh "$@" > "$log" 2>&1
    code=$?
    while IFS= read -r line; do
        case $line in
            ok\ *) caught=$((caught + 1)) ;;
            FAILED\ *) missed=$((missed + 1)); fail "planted bug: ${line#FAILED }" ;;
        esac
        echo "  $line"
    done < "$log"
    passed=$((passed + caught))
    if [ $missed = 0 ] && { [ $code != 0 ] || [ $caught = 0 ]; }; then
        fail "planted bugs: $(ending $code), $caught caught, without a verdict"
    fi
}
# TSan needs its shadow memory where address randomisation might put something else.
without_randomisation=()
setarch -R true 2> /dev/null && without_randomisation=(setarch -R)

# check NAME COMMAND...: one test of the build itself.
check() {
    local name=$1
    shift
    if "$@"; then passed=$((passed + 1)); else fail "$name"; fi
}
second_make_is_idle() { [ "$(make BACKEND=cpu all)" = "everything is up to date" ]; }
refuses() {  # WORD MAKE_ARGUMENT...: exit code 2 and one line that holds the word
    local word=$1 said
    shift
    said=$(make "$@" test_mot 2>&1)
    [ $? = 2 ] && [ "$(wc -l <<< "$said")" = 1 ] && [[ $said == *"$word"* ]]
}

# A program passes only if a test ran. counts_as FILTER SENTENCE: with this filter test_embedding fails with it. In a
# shell of its own, which counts for itself.
counts_as() (
    passed=0 failed=0 skipped=0 failures=() skips=()
    cp build/cpu/test/test_embedding build/cpu/test/test_some  # of its own, for its log
    GTEST_FILTER=$1 run_gtest some build/cpu/test/test_some > /dev/null
    rm -f build/cpu/test/test_some*
    [ "$passed $failed ${failures[*]}" = "0 1 some: $2" ]
)

gpu_check_works() {  # `make gpu-check` needs a GPU; on the emulated one it must find all in order and write its report
    BACKEND=emu TEST_SIZES=small REPORT=build/gpu_check.json scripts/gpu_check.sh > build/gpu_check.log 2>&1 &&
        grep -q '"model": "tiny_mot"' build/gpu_check.json && ! grep -q '"ok": false' build/gpu_check.json
}
why_no_cuda() { sed -n 's/^CUDA_PROBLEM := //p' "build/$1/config.mk" 2> /dev/null; }

test_lint() {
    local part
    phase "lint"
    git rev-parse HEAD > /dev/null || { skip "lint: this is no git checkout"; return; }
    command -v shellcheck > /dev/null || skip "lint: shell scripts: shellcheck is not installed"
    for part in shell links flags sizes version; do check "lint: $part, see above" scripts/lint.sh $part; done
}

# Programs for many processors: by g++, for x86-64.
builds_portable() { [ "$(uname -m)" = x86_64 ] && [[ ${CXX:-g++} != *clang* ]]; }

# All tests again on the AVX2 kernels of the portable program and of oneDNN. Where the processor has nothing better, the
# native build has run them already. So both kinds of machine test the path that most processors take.
test_avx2() {
    if wanted test_matmul; then  # also where there is no portable program: oneDNN without bf16
        ONEDNN_MAX_CPU_ISA=AVX2 run_gtest onednn-avx2:test_matmul build/cpu/test/test_matmul
    fi
    local best=AVX2
    ! grep -qw avx512f /proc/cpuinfo || best=AVX-512
    if ! builds_portable; then
        skip "AVX2 kernels: no portable program here"
    elif ! grep -qw avx2 /proc/cpuinfo; then
        skip "AVX2 kernels: this processor has none"
    elif [ $best = AVX2 ] && [ "$AVX2" != yes ]; then
        skip "AVX2 kernels of the portable program: the native ones are AVX2 too (AVX2=yes tests them all the same)"
    else
        phase "build of the portable program's tests"
        make -k BACKEND=cpu ARCH=portable all tests || fail "build: ARCH=portable does not build, see above"
        phase "tests on AVX2 kernels"
        export MOT_KERNELS=x86-64-v3 ONEDNN_MAX_CPU_ISA=AVX2
        run_variant "avx2:" build/cpu-portable
        unset MOT_KERNELS ONEDNN_MAX_CPU_ISA
    fi
}

test_cpu() {
    if wanted includes; then check "includes: not all point down, see above" scripts/check_includes.sh; fi
    local before=$failed
    phase "build"
    make -k BACKEND=cpu all tests || fail "build: a program or test does not build, see above"
    if wanted test_portable && builds_portable; then
        make -k BACKEND=cpu ARCH=portable train_mot || fail "build: ARCH=portable does not build, see above"
    fi

    phase "tests"
    if wanted build && [ $failed != "$before" ]; then
        skip "build: the checks of the build itself: it failed"
    elif wanted build; then
        make BACKEND=cpu all build/cpu/test/test_embedding > /dev/null
        check "build: a second make has something to do" second_make_is_idle
        check "build: an unknown backend" refuses gpu BACKEND=gpu
        check "build: an unknown GPU" refuses GPU_ARCH BACKEND=cuda GPU_ARCH=75
        check "build: TSan without the emulator" refuses emu BACKEND=cpu SANITIZE=thread
        check "tests: a program that runs none passes" counts_as NoSuchTest "no test ran"
        check "tests: a program that skips all passes" counts_as '*WhereTheyCannotBeRefused' "every test was skipped"
        report build $((6 - failed + before)) $((failed - before)) 0 0
    fi
    run_variant "" build/cpu
    test_avx2

    if [ "$ASAN" = no ]; then
        skip "everything under ASan and UBSan: ASAN=no"
    else
        phase "build with ASan and UBSan"
        make -k BACKEND=cpu SANITIZE=address test_mot tests || fail "build: SANITIZE=address does not build, see above"
        phase "tests with ASan and UBSan"
        run_variant "asan:" build/cpu-asan
    fi
}

# The CUDA sources executed on the CPU. SEED...: schedules of the plain build (0: threads in ascending order).
test_emu() {
    local seed
    phase "build of the emulated GPU"
    make -k BACKEND=emu all kernel-tests \
        build/emu/test/test_{backends,train_mot,train_gpt,comm,comm_failure,rendezvous,sharding,launch_gpu} ||
        fail "build: BACKEND=emu does not build, see above"
    phase "kernels on the emulated GPU"
    for seed in "$@"; do run_kernels "emu:" build/emu "$seed"; done
    run_emulator_tests "emu:" build/emu
    for name in test_{backends,train_mot,train_gpt,comm,comm_failure,rendezvous,sharding,launch_gpu}; do
        if wanted "$name"; then run_gtest "emu:$name" "build/emu/test/$name"; fi
    done
    if wanted golden; then run_golden "emu:golden" build/emu/test_mot; fi
    if wanted gpu_check; then check "gpu_check on the emulated GPU, see build/gpu_check.log" gpu_check_works; fi

    if [ "$ASAN" = no ]; then
        skip "kernels under ASan and UBSan, and TSan: ASAN=no"
        return
    fi
    phase "build of the emulated GPU with ASan and UBSan, and with TSan"
    make -k BACKEND=emu SANITIZE=address kernel-tests || fail "build: BACKEND=emu SANITIZE=address, see above"
    make -k BACKEND=emu SANITIZE=thread kernel-tests || fail "build: BACKEND=emu SANITIZE=thread, see above"
    phase "kernels with ASan and UBSan"
    TEST_SIZES=small run_kernels "emu-asan:" build/emu-asan 5
    run_emulator_tests "emu-asan:" build/emu-asan
    phase "kernels with TSan"
    TEST_SIZES=small run_kernels "emu-tsan:" build/emu-tsan 5 "${without_randomisation[@]}"
    run_emulator_tests "emu-tsan:" build/emu-tsan "${without_randomisation[@]}"
    run_planted_bugs build/emu build/emu-asan build/emu-tsan
}

# nvcc and ptxas accept every kernel, and none spills.
test_compiler() {
    phase "kernels compiled for GPUs"
    make -k BACKEND=cuda all || fail "build: BACKEND=cuda does not build, see above"
    if wanted gpu_report; then check "gpu_report: spills, or the table is out of date" make BACKEND=cuda gpu-report; fi
}

scripts/deps.sh test || exit 2
if [ "$EMU" = full ]; then
    phase "build"
    make BACKEND=cpu train_mot || fail "build: see above"  # what the emulated training is compared with
    test_emu 0 1 2 3 4
else
    if wanted lint; then test_lint; fi
    test_cpu
    make BACKEND=emu table > /dev/null 2>&1
    if [ "$GPU" = no ]; then
        skip "everything about CUDA: GPU=no"
    else
        reason=$(why_no_cuda emu)
        if [ -n "$reason" ]; then skip "kernels on the emulated GPU: $reason"; else TEST_SIZES=small test_emu 0 1 7; fi
        make BACKEND=cuda table > /dev/null 2>&1
        reason=$(why_no_cuda cuda)
        if [ -n "$reason" ]; then skip "kernels compiled for GPUs: $reason"; else test_compiler; fi
    fi
fi

phase "result"
[ $((passed + failed)) -gt 0 ] || fail "nothing ran${FILTER:+: no test has \"$FILTER\" in its name}"
for line in ${skips[@]+"${skips[@]}"}; do echo "skipped  $line"; done
for line in ${failures[@]+"${failures[@]}"}; do echo "FAILED   $line"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
