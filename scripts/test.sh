#!/usr/bin/env bash
# Sets up and passes the checks: format, lint, types, tests. PYTHON and TORCH as in quickstart.sh. With FUZZ_MINUTES above
# 0 the two fuzzers follow, for so many minutes, beside each other.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
extras=test
[ "${FUZZ_MINUTES:-0}" = 0 ] || extras=fuzz,test
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet ${TORCH:-torch==2.14.1 torchvision==0.29.1} -e ".[$extras]"
.venv/bin/python -m pip check
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
# One thread in each test process: small networks are several times slower with two.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadgroup --durations=10 "$@"

if [ "${FUZZ_MINUTES:-0}" != 0 ]; then
    found=0
    log=$(mktemp)
    .venv/bin/python scripts/fuzz.py --minutes "$FUZZ_MINUTES" --examples 100 >"$log" 2>&1 &
    other=$!
    # Absent where it has no wheel (Python 3.14, other systems than Linux): then it says how it is installed.
    if .venv/bin/python -c "import atheris" 2>/dev/null; then
        OMP_NUM_THREADS=1 .venv/bin/python scripts/fuzz_bytes.py --minutes "$FUZZ_MINUTES" --seed 1 || found=1
    else
        .venv/bin/python scripts/fuzz_bytes.py || true
    fi
    wait "$other" || found=1
    cat "$log"
    rm -f "$log"
    exit "$found"
fi
