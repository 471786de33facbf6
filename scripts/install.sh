#!/bin/sh
# Installs kit into a new virtual environment, as the Dockerfile does.
# Usage: [PYTHON=python3.12] scripts/install.sh FOLDER [cpu|cuda|INDEX_URL]
#   cpu: torch without NVIDIA's libraries; cuda: torch as the package index has it; INDEX_URL: torch of another index.
set -eu
folder=$1 torch=${2:-cpu}
source=$(cd "$(dirname "$0")/.." && pwd)
case $torch in cpu) torch=https://download.pytorch.org/whl/cpu ;; esac

"${PYTHON:-python3}" -m venv "$folder"
if [ "$torch" != cuda ]; then
    "$folder/bin/pip" install --no-cache-dir torch torchvision --index-url "$torch"
fi
"$folder/bin/pip" install --no-cache-dir "$source"
