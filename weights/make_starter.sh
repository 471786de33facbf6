#!/usr/bin/env bash
# Makes the starter weights: weights/make_starter.sh CATALOG ABOUT.json [MINUTES]
# CATALOG: scenes with labels, as for kit prepare; the drawn city of kit sample is added. ABOUT.json: texts for the card.
# Two cores need half an hour.
set -euo pipefail
catalog=$(realpath "$1") about=$(realpath "$2") minutes=${3:-24}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
kit prepare "$catalog" --name starter_data --root "$work"
kit sample --root "$work"
kit prepare "$work/sample/train_tier_1" --name drawn --root "$work"
kit run starter --data starter_data --add drawn=0.25 --all --minutes "$minutes" --no-export --root "$work"
kit export starter/foldall --name starter --views flips --float16 --about "$about" --root "$work"
cp "$work"/weights/starter.pt "$work"/weights/starter.json "$here"
python - "$work/runs/starter/foldall/best.safetensors" "$here/starter.safetensors" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file

tensors = load_file(sys.argv[1])
half = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
save_file(half, sys.argv[2])  # what kit run --start-from starter begins with
PYTHON
rm -r "$work"
