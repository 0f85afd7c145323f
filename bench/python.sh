# Sourced by the other scripts: $venv/bin/python has PyTorch, in the versions that also made the golden files.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/smolforge/venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, transformers' 2>/dev/null ||
    "$venv/bin/python" -m pip install -q -r tests/golden/requirements.txt
