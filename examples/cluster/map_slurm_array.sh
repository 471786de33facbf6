#!/bin/bash
# Maps a country with a SLURM array, without any engine: plan, 40 parts, merge. Run it on the login node.
#   COLLECTION=/shared/scenes WEIGHTS=lite0 ROOT=/shared/kit bash map_slurm_array.sh
# Every part writes to ROOT, a disk that all nodes share. A part that was killed is rerun by the same command.
set -euo pipefail
: "${COLLECTION:?path or address of the scenes}" "${WEIGHTS:=lite0}" "${ROOT:=$PWD}" "${PARTS:=40}"

kit map "$COLLECTION" --weights "$WEIGHTS" --root "$ROOT" --plan

parts=$(sbatch --parsable --job-name=kit-map --array="1-$PARTS" --cpus-per-task=8 --mem=16G --time=12:00:00 \
  --wrap "kit map '$COLLECTION' --weights '$WEIGHTS' --root '$ROOT' --part \$SLURM_ARRAY_TASK_ID/$PARTS --workers 8")

sbatch --job-name=kit-merge --dependency="afterany:$parts" --cpus-per-task=2 --mem=32G --time=04:00:00 \
  --wrap "kit map '$COLLECTION' --weights '$WEIGHTS' --root '$ROOT' --merge"
