#!/usr/bin/env bash
# Runs the bugs of test_emu_bugs.cpp: each must be caught by the builds it says, and its right twin must pass in all.
#     dev/test/emu_bugs.sh build/emu build/emu-asan build/emu-tsan
# Prints `ok NAME ...` or `FAILED NAME ...` for each; exit code 1 if any failed. "Caught": the test ran, and
# its exit code is not 0.
# In the plain build it suffices that some of the seeds show the bug, the sanitizers must always report it.
set -u
plain=$1/test/test_emu_bugs asan=$2/test/test_emu_bugs tsan=$3/test/test_emu_bugs
seeds="0 1 2 3 4 5 6 7"
setarch=()
setarch -R true 2> /dev/null && setarch=(setarch -R)  # TSan's shadow memory wants fixed addresses
export TSAN_OPTIONS="${TSAN_OPTIONS:-}:atexit_sleep_ms=0"  # not a second of sleep per program
log=$(mktemp) code=0
trap 'rm -f "$log"' EXIT

# run SUITE.NAME PROGRAM...
run() {
    local test=$1
    shift
    timeout 120 "$@" --gtest_also_run_disabled_tests --gtest_filter="$test" > "$log" 2>&1 < /dev/null
    code_of_run=$?
    [ $code_of_run = 0 ] && grep -q '^\[  PASSED  \] 1 test' "$log"
}
# Not a bug that was never run, or that hangs: then something else is wrong.
bug_caught() {
    run "DISABLED_Bug.$name" "$@" && return 1
    [ "$code_of_run" != 0 ] && [ "$code_of_run" != 124 ] && grep -q "^\[ RUN      \] DISABLED_Bug.$name\$" "$log"
}
twin_passes() { run "Twin.$name" "$@"; }

# expect NAME WHO...: WHO catches it: plain, lazy (plain with EMU_LAZY=1), guard (plain with EMU_GUARD=1), asan, tsan
expect() {
    local name=$1 wrong="" said="" who seed n
    shift
    for seed in $seeds; do
        export EMU_SEED=$seed
        twin_passes "$plain" || wrong+=" twin:seed-$seed"
        EMU_LAZY=1 twin_passes "$plain" || wrong+=" twin:lazy:seed-$seed"
    done
    EMU_GUARD=1 twin_passes "$plain" || wrong+=" twin:guard"
    twin_passes "$asan" || wrong+=" twin:asan"
    twin_passes "${setarch[@]}" "$tsan" || wrong+=" twin:tsan"
    for who in "$@"; do
        n=0
        for seed in $seeds; do
            export EMU_SEED=$seed
            case $who in
                plain) bug_caught "$plain" ;;
                lazy) EMU_LAZY=1 bug_caught "$plain" ;;
                guard) EMU_GUARD=1 bug_caught "$plain" ;;
                asan) bug_caught "$asan" ;;
                tsan) bug_caught "${setarch[@]}" "$tsan" ;;
            esac && n=$((n + 1))
            case $who in asan | tsan) [ "$seed" = 2 ] && break ;; esac
        done
        said+=" $who:$n"
        case $who in
            asan | tsan) [ $n = 3 ] || wrong+=" $who" ;;
            *) [ $n -gt 0 ] || wrong+=" $who" ;;
        esac
    done
    if [ -z "$wrong" ]; then
        echo "ok $name caught by$said"
    else
        echo "FAILED $name: not as it should be:$wrong (caught by$said)"
        code=1
    fi
}

for program in "$plain" "$asan" "$tsan"; do
    [ -x "$program" ] || { echo "FAILED emu_bugs: $program was not built"; exit 1; }
done
expect MissingBarrierBeforeRead plain tsan
expect MissingBarrierBeforeReuse plain tsan
expect ShuffleTakenForBarrier tsan
expect DivergentBarrier plain asan tsan
expect MissingAtomic tsan
expect GlobalOverrun asan guard
expect StaticSharedOverrun plain asan
expect DynamicSharedOverrun plain asan
expect UninitialisedShared plain asan tsan
expect UninitialisedGlobal plain asan tsan
expect UseAfterFree asan guard
expect MissingCopyWait plain asan tsan
expect MissingBarrierAfterCopyWait plain tsan
expect HostDoesNotWait lazy
expect MissingEvent lazy
expect HostReadsDeviceMemory guard
exit $code
