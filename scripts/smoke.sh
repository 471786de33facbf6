#!/usr/bin/env bash
# Uses each part of an installed kit once, in an empty folder: scripts/smoke.sh [FOLDER WITH kit, such as .venv/bin]
# Draws the sample, cuts tiles, trains four steps, exports, submits, scores, maps. Its scores mean nothing.
set -euo pipefail
kit=${1:+$(realpath "$1")/}kit
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"
"$kit" --version
"$kit" run quickstart --fold 0 --steps 4 --device cpu
"$kit" submit --device cpu
"$kit" score submissions/quickstart-test sample/test_labels
scenes=(sample/train_tier_1/*/*/*.tif)
"$kit" map "${scenes[0]}" --device cpu
