#!/bin/sh
# Collects kit and all that it needs in a folder, for machines without a network.
# Usage: [PYTHON=python3.12] scripts/wheelhouse.sh FOLDER [cpu|cuda|INDEX_URL] [OPTION OF pip ...]
# Then, on a machine with the same system and the same Python: pip install --no-index --find-links FOLDER footprintkit
set -eu
folder=$1 torch=${2:-cuda}
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ $# -lt 2 ] || shift
shift
case $torch in cpu) torch=https://download.pytorch.org/whl/cpu ;; esac

rm -f "$folder"/footprintkit-*.whl # of an earlier run
"$python" -m pip wheel "$source" --no-deps --wheel-dir "$folder"
if [ "$torch" = cuda ]; then
    "$python" -m pip download --only-binary :all: --dest "$folder" "$@" "$folder"/footprintkit-*.whl
else
    "$python" -m pip download --only-binary :all: --dest "$folder" "$@" --no-deps torch torchvision --index-url "$torch"
    # named as files: the package index has builds with CUDA under the same version
    "$python" -m pip download --only-binary :all: --dest "$folder" "$@" "$folder"/footprintkit-*.whl \
        "$folder"/torch-*.whl "$folder"/torchvision-*.whl
fi
