#!/usr/bin/env bash
# Set up, decode the whole grid on the embedded models, and draw its figure. What is done already is not done again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
.venv/bin/rsdbench run experiment=standin
.venv/bin/rsdbench figure results/standin --out results/standin/figure.png
.venv/bin/rsdbench table results/standin --out results/standin/points.csv
