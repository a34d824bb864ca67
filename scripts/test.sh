#!/usr/bin/env bash
# Set up and run all tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# three processes of one thread each: those of Slurm mostly wait
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 3 --no-loadscope-reorder "$@"
