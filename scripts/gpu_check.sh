#!/usr/bin/env bash
# Measure the engine on a GPU with random weights of OPT's real shapes: bash scripts/gpu_check.sh [OUT_DIR [SECONDS]]
# Needs a CUDA device and a python with torch and transformers ($PYTHON, .venv or python3); no network, no set-up.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
seconds="${2:-460}"
if ! [[ "$seconds" =~ ^[1-9][0-9]{0,5}$ ]]; then
    echo "gpu_check: SECONDS must be a whole number of seconds such as 460, not '$seconds'" >&2
    exit 2
fi
limit=$((seconds + 70)) # what is under way when the time is used up ends within these
found=python3
if [ -x "$repository/.venv/bin/python" ]; then found="$repository/.venv/bin/python"; fi
python="${PYTHON:-$found}"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

needed='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "transformers"))))'
if ! "$python" -c "$needed" 2>/dev/null; then
    echo "gpu_check: $python has no torch and transformers: name a python that has both, PYTHON=/path/to/python" >&2
    exit 2
fi
code=0
timeout --foreground --kill-after=5 "$limit" "$python" "$repository/scripts/gpu_check.py" "$@" || code=$?
if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
    echo "gpu_check: stopped after $limit seconds; what was measured before is in ${1:-$repository/results/gpu}" >&2
    exit 1
fi
exit "$code"
