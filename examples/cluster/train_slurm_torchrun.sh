#!/bin/bash
# Trains one fold on 2 nodes with 8 GPUs each, started by torchrun:
#   sbatch train_slurm_torchrun.sh efficientnet_b4 tier1
#SBATCH --job-name=kit-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
set -euo pipefail
recipe=${1:?recipe}; data=${2:?data set}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m kit run "$recipe" --data "$data" --fold 0
