#!/bin/sh
# Stands in for srun in tests: starts FAKE_TASKS processes on this machine, with the variables that Slurm would set, or
# by mpirun under --mpi=pmix. Its exit code is the highest of theirs.
mpi=
while :; do
    case $1 in
        --mpi=pmix) mpi=yes ;;
        -*) ;;
        *) break ;;
    esac
    shift
done
[ -z "$mpi" ] || exec mpirun --allow-run-as-root --oversubscribe --bind-to none --timeout 120 -np "$FAKE_TASKS" "$@"
export SLURM_STEP_NUM_TASKS="$FAKE_TASKS" SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost
ids= code=0 rank=0
while [ $rank -lt "$FAKE_TASKS" ]; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    ids="$ids $!" rank=$((rank + 1))
done
for id in $ids; do
    wait "$id" || { one=$?; [ $one -lt $code ] || code=$one; }
done
exit $code
