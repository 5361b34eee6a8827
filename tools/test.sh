#!/usr/bin/env bash
# Everything that must hold before a change is accepted: style, types, import rules, tests.
#
#   bash tools/test.sh [PYTEST ARGUMENT...]      e.g. -m slow, -k matching, --cov
#
# TEST_WORKERS sets the number of test processes (default 2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

prepare_environment test
# Each test process computes on one thread: the default, all cores for each, is slower.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
# No test may depend on a model or data set hub.
export HF_HUB_OFFLINE=1

step() {
    echo "== $*"
    "$@"
}

step ruff check .
step ruff format --check .
step mypy
step lint-imports --no-logo
step python -m pytest --numprocesses "${TEST_WORKERS:-2}" --durations 10 "$@"
