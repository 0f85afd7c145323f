# Sourced by the other scripts: Python with PyTorch as $venv, and the program as $binary.

# PyTorch lives outside the checkout, in the versions that also made the golden files.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/smolforge/venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, transformers' 2>/dev/null ||
    "$venv/bin/python" -m pip install -q -r tests/golden/requirements.txt

cargo build --release --workspace # one package alone would have other features of burn, and compile it again
binary="${CARGO_TARGET_DIR:-target}/release/smolforge"
