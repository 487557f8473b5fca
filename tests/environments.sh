#!/usr/bin/env bash
# A slice of the test suite where machines differ: beside SLURM, inside an allocation, on one core, as another user.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

# in_environment NAME COMMAND…: the slice, started by a command that changes what it sees
in_environment() {
  echo "== $1"
  mkdir -m 777 "$scratch/$1"
  PYTHONDONTWRITEBYTECODE=1 "${@:2}" "$PWD/.venv/bin/python" -m pytest -p no:cacheprovider --basetemp="$scratch/$1/tmp" \
    "${slice[@]}"
}

# What asks the machine something: who starts the processes, a seed that is drawn, pools of processes, a prediction.
slice=(
  tests/test_train.py::test_a_resumed_run_keeps_the_seed_that_was_drawn
  tests/training/test_processes.py::test_who_reports
  tests/training/test_processes.py::test_the_trainer_and_we_agree_on_who_starts_the_processes
  tests/test_predict.py::test_an_interrupted_prediction_goes_on
  tests/data/cache/test_filling.py::test_the_same_in_parallel
  tests/runtime/test_workers.py
)

mkdir "$scratch/bin"
printf '#!/bin/sh\nexit 1\n' > "$scratch/bin/srun"
chmod +x "$scratch/bin/srun"
slurm=(PATH="$scratch/bin:$PATH" SLURM_JOB_ID=1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_JOB_NODELIST=localhost)

in_environment login-node env PATH="$scratch/bin:$PATH"
in_environment salloc env "${slurm[@]}" SLURM_JOB_NAME=interactive
in_environment sbatch env "${slurm[@]}" SLURM_JOB_NAME=job.sh SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
if command -v taskset > /dev/null; then
  in_environment one-core taskset -c "$(taskset -cp $$ | sed 's/.*: *\([0-9]*\).*/\1/')" env -u HOME
fi
if [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null; then
  mkdir -m 555 "$scratch/home"
  mkdir -m 777 "$scratch/elsewhere"
  user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
  # Where Python itself lies in root's home: root without any of its privileges.
  "${user[@]}" env "$PWD/.venv/bin/python" -c '' 2> /dev/null || user=(setpriv --bounding-set=-all --inh-caps=-all)
  in_environment user "${user[@]}" env HOME="$scratch/home" TMPDIR="$scratch/elsewhere"
fi
