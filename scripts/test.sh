#!/usr/bin/env bash
# `make test`: builds everything, runs every test, then the tests again under ASan and UBSan.
#
# Environment: FILTER=word  only tests whose name holds the word (test_attention, golden, build)
#              ASAN=no      leaves the sanitized run out
#              DEPS=no      installs nothing
# The last line is `N passed, N failed, N skipped`; the lines before it name what failed or was skipped, and why.
# A test that crashes, hangs or ends without a verdict is a failure. Exit code 1 if anything failed or nothing ran.
set -u
cd "$(dirname "$0")/.."
FILTER=${FILTER:-} ASAN=${ASAN:-}
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

# run_gtest NAME PROGRAM: one GoogleTest program; the whole output goes to PROGRAM.log.
run_gtest() {
    local name=$1 program=$2 log=$2.log code ok bad none start=$SECONDS line reason=
    if [ ! -x "$program" ]; then fail "$name: did not build"; return; fi
    timeout "$limit" "$program" --gtest_color=no > "$log" 2>&1 < /dev/null
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
    fi
    report "$name" "$ok" "$bad" "$none" $((SECONDS - start))
    [ "$bad" = 0 ] || excerpt "$log"
}

# run_variant PREFIX DIRECTORY
run_variant() {
    local prefix=$1 directory=$2 source name
    for source in dev/test/test_*.cpp; do
        name=$(basename "$source" .cpp)
        if [ -e "$source" ] && wanted "$name"; then run_gtest "$prefix$name" "$directory/test/$name"; fi
    done
    if wanted golden; then run_golden "${prefix}golden" "$directory/test_mot"; fi
}

# check NAME COMMAND...: one test of the build itself.
check() {
    local name=$1
    shift
    if "$@"; then passed=$((passed + 1)); else fail "$name"; fi
}
second_make_is_idle() { [ "$(make all)" = "everything is up to date" ] || { make all; false; }; }
refuses_backend() {
    local said
    said=$(make "BACKEND=$1" test_mot 2>&1)
    [ $? = 2 ] && [ "$(wc -l <<< "$said")" = 1 ]
}

phase "build"
scripts/deps.sh test || exit 2
make -k all tests || fail "build: a program or test does not build, see above"

phase "tests"
if wanted build && [ $failed = 0 ]; then
    check "build: a second make has something to do" second_make_is_idle
    check "build: BACKEND=cuda must say in one line that it does not exist yet, with exit code 2" refuses_backend cuda
    check "build: BACKEND=emu must say in one line that it does not exist yet, with exit code 2" refuses_backend emu
    report build 3 "$failed" 0 0
fi
run_variant "" build/cpu

if [ "$ASAN" = no ]; then
    skip "everything under ASan and UBSan: ASAN=no"
else
    phase "build with ASan and UBSan"
    make -k SANITIZE=address test_mot tests || fail "build: SANITIZE=address does not build, see above"
    phase "tests with ASan and UBSan"
    run_variant "asan:" build/cpu-asan
fi

phase "result"
[ $((passed + failed)) -gt 0 ] || fail "nothing ran${FILTER:+: no test has \"$FILTER\" in its name}"
for line in ${skips[@]+"${skips[@]}"}; do echo "skipped  $line"; done
for line in ${failures[@]+"${failures[@]}"}; do echo "FAILED   $line"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
