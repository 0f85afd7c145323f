#!/usr/bin/env bash
# How the time of a training step grows with layers, tokens and vocabulary. See bench/README.md.
# Usage: bench/scaling.sh [--device cpu,gpu] [--rounds N] [--out FILE.svg]
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/prepare.sh
exec "$venv/bin/python" bench/scaling.py --binary "$binary" "$@"
