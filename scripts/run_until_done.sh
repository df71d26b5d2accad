#!/usr/bin/env bash
# Runs a training command again after a failure, from its last checkpoint, until it is done.
#
#   scripts/run_until_done.sh [--restarts N] [--pause S] [--patience S] mpirun ... train_mot ... --auto-resume
#
#   --restarts N   gives up after N restarts without a new checkpoint in between (5)
#   --pause S      seconds before a restart, doubled after each one without a new checkpoint, up to 10 minutes (5)
#   --patience S   ends a command whose run directory has not changed for S seconds: an mpirun that waits for a host it
#                  cannot reach (1800; more than steps between console lines, a validation and --comm-timeout take)
#
# It restarts after exit code 1, a signal or a failure of the launcher. It ends, with the command's exit code, after 0
# (done), 2 (bad input: it would fail again), 129, 130 and 143 (interrupted and saved). SIGINT and SIGTERM are passed
# on, SIGHUP, SIGUSR1 and SIGUSR2 as SIGTERM, which every launcher understands.
set -um  # -m: the command is a process group of its own, so that Ctrl-C reaches it once, from here
say() { echo "run_until_done: $*" >&2; }
refuse() { say "$*"; exit 2; }

restarts=5 pause=5 patience=1800
while [[ ${1:-} == --* ]]; do
    [[ ${2:-} =~ ^[0-9]+$ ]] || refuse "$1 needs a whole number"
    case $1 in
        --restarts) restarts=$2 ;;
        --pause) pause=$2 ;;
        --patience) patience=$2 ;;
        *) refuse "$1 is not known: see the first lines of $0" ;;
    esac
    shift 2
done
[ $# -gt 0 ] || refuse "give the command to run: see the first lines of $0"
run= resumes=
for ((i = 1; i <= $#; i++)); do
    next=$((i + 1))
    case ${!i} in
        --run-dir) run=${!next:-} ;;
        --run-dir=*) run=${!i#*=} ;;
        --auto-resume) resumes=yes ;;
    esac
done
[ -n "$run" ] || refuse "the command has no --run-dir, where its checkpoints are looked for"
[ -n "$resumes" ] || refuse "the command has no --auto-resume, so it would not go on from a checkpoint: add it"

checkpoint() { cat "$run/latest" 2> /dev/null || echo "no checkpoint"; }
last_change() { stat -c %Y "$run" "$run/log.jsonl" "$run/latest" 2> /dev/null | sort -n | tail -n 1; }

# Kills a command that hangs, with all its processes on this host.
watch_for_hang() {  # PROCESS
    local begin last
    begin=$(date +%s)
    while sleep 1; do
        last=$(last_change)
        [ "${last:-0}" -gt "$begin" ] || last=$begin
        [ $(($(date +%s) - last)) -gt "$patience" ] || continue
        say "nothing new in $run for $patience seconds: ending the command"
        kill -KILL -- "-$1"
        return
    done
}

stop= child=
pass_on() {  # SIGNAL EXIT_CODE
    stop=$2
    [ -z "$child" ] || kill "-$1" "$child" 2> /dev/null
}
trap 'pass_on INT 130' INT
trap 'pass_on TERM 143' TERM USR1 USR2
trap 'pass_on TERM 129' HUP

run_once() {  # COMMAND...: leaves its exit code in `code`
    "$@" < /dev/null &
    child=$!
    watch_for_hang $child &
    local watcher=$!
    while wait $child; code=$?; kill -0 $child 2> /dev/null; do :; done  # a signal ends `wait`, not the command
    kill -KILL -- "-$child" "-$watcher" 2> /dev/null  # what the launcher may have left behind
    wait $watcher 2> /dev/null
    child=
}

failures=0 wait_for=$pause
while :; do
    before=$(checkpoint)
    run_once "$@"
    case ${stop:-$code} in
        0) exit 0 ;;
        2) say "exit code 2: bad input, which a restart does not mend"; exit 2 ;;
        129 | 130 | 143) say "interrupted, at $(checkpoint)"; exit "${stop:-$code}" ;;
    esac
    [ "$(checkpoint)" = "$before" ] || failures=0 wait_for=$pause
    failures=$((failures + 1))
    if [ $failures -gt "$restarts" ]; then
        say "exit code $code, and $restarts restarts have brought no new checkpoint ($before): giving up"
        exit "$code"
    fi
    say "exit code $code, at $(checkpoint): restart $failures of $restarts in $wait_for s"
    sleep "$wait_for" &
    wait $!
    [ -z "$stop" ] || exit "$stop"
    wait_for=$((wait_for * 2 > 600 ? 600 : wait_for * 2))
done
