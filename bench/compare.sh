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

source bench/prepare.sh
exec "$venv/bin/python" bench/compare.py --binary "$binary" ${arguments[@]+"${arguments[@]}"}
