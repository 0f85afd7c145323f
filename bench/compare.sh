#!/usr/bin/env bash
# smolforge against PyTorch, llama.cpp, meganeura and others on this machine, in turns. See bench/README.md.
# Usage: bench/compare.sh [--device cpu|gpu] [--quick] [--pairs N] [further arguments of compare.py]
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=()
for argument in "$@"; do
    case "$argument" in
        --quick) arguments+=(--pairs 2) ;;
        -h | --help) sed -n '2,3p' "$0" | sed 's/^# //'; exit 0 ;;
        *) arguments+=("$argument") ;;
    esac
done

# PyTorch lives outside the checkout, in the versions that also made the golden files.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/smolforge/venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, transformers' 2>/dev/null ||
    "$venv/bin/python" -m pip install -q -r tests/golden/requirements.txt

cargo build --release --workspace # one package alone would have other features of burn, and compile it again
binary="${CARGO_TARGET_DIR:-target}/release/smolforge"
exec "$venv/bin/python" bench/compare.py --binary "$binary" ${arguments[@]+"${arguments[@]}"}
