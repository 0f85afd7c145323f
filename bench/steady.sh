#!/usr/bin/env bash
# Whether a long run stays as fast and as small. See bench/README.md.
# Usage: bench/steady.sh [--device cpu|gpu] [--precision f32,mixed] [--steps N]
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/prepare.sh
exec "$venv/bin/python" bench/steady.py --binary "$binary" "$@"
