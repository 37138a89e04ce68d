#!/usr/bin/env bash
# Sets up and runs the main job on the shipped sample: real clip art from the web, no download of models or data.
# PYTHON and TORCH may name another interpreter and other builds of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet ${TORCH:-torch==2.14.1 torchvision==0.29.1} .
.venv/bin/noisycorr clean sample --output_folder out/sample "$@"
