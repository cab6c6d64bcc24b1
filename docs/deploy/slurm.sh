#!/usr/bin/env bash
# One training on several machines of a Slurm cluster:
#
#     sbatch docs/deploy/slurm.sh configs/crafter_native_ppo.yaml total_steps=1e8
#     sbatch docs/deploy/slurm.sh --resume runs/NAME
#
# Untried. fastrl must be installed for all machines, as in a virtual environment on a shared file
# system; activate it before sbatch, which passes the environment on.
#SBATCH --job-name=fastrl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
# At the end of the job, Ray's processes of this user are stopped on all of its machines.
#SBATCH --exclusive
#SBATCH --time=24:00:00
# The run saves and ends before the time is over; --resume continues it.
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch slurm.sh CONFIG [KEY=VALUE…], or --resume RUN [KEY=VALUE…]" >&2
    exit 2
fi
command=(fastrl train "$@")
if [[ $1 == --resume ]]; then
    command=(fastrl resume "${@:2}")
fi

# The first machine has the head of the Ray cluster and the learner, and samples as well.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Jobs of different users may share a machine's network.
port=$((10000 + SLURM_JOB_ID % 20000))

export RAY_USAGE_STATS_ENABLED=0
# Starts Ray on every machine, waits for all of them, runs the command on the head, and stops Ray.
exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    "${command[@]}" "cluster.address=$head:$port"
