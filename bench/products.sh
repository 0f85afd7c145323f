#!/usr/bin/env bash
# How fast the kernels of matrix products are on a graphics device. See bench/README.md.
# Usage: bench/products.sh [--kernels lanes|tile] [--tokens 512,128] [--rounds N]
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/python.sh
exec "$venv/bin/python" bench/products.py "$@"
