#!/usr/bin/env bash
# Sets up and passes the checks: format, lint, types, tests. PYTHON and TORCH as in quickstart.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet ${TORCH:-torch==2.14.1 torchvision==0.29.1} -e ".[test]"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
# One thread in each test process: small networks are several times slower with two.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadgroup --durations=10 "$@"
