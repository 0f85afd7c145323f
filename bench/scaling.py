"""Draws how the time of a training step grows with layers, tokens and vocabulary: it should be along straight lines.

    bench/scaling.sh [--device cpu,gpu] [--rounds 3] [--out bench/scaling.svg]

Every size is measured in a process of its own, all of them in turns, several rounds over; a point is the median of its rounds.
The line is fitted by least squares; its r² and how far the farthest point lies from it are told.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import peers
from peers import Skipped

# What is varied, around a model of 4 layers of width 320 with 16,384 tokens that learns 4 sequences of 128.
BASE = {"layers": 4, "tokens": 4 * 128, "vocabulary": 16_384}
SIZES = {
    "layers": [1, 2, 4, 8, 12, 16],
    "tokens": [128, 256, 512, 1024, 1536, 2048],
    "vocabulary": [4096, 8192, 16_384, 32_768, 49_152, 65_536],
}
SEQUENCE = 128


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the built smolforge")
    parser.add_argument("--device", default="cpu,gpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=Path(__file__).parent / "scaling.svg", type=Path)
    return parser.parse_args()


def config(layers, vocabulary):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 320, "intermediate_size": 864,
        "num_hidden_layers": layers, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "initializer_range": 0.05, "bos_token_id": 0, "eos_token_id": 0,
    }


def step_secs(options, folder, device, sizes):
    """Seconds of a training step of these sizes."""
    path = folder / f"{sizes['layers']}-{sizes['vocabulary']}.json"
    path.write_text(json.dumps(config(sizes["layers"], sizes["vocabulary"])))
    work = ["--preset", str(path), "--device", device, "--batch", str(sizes["tokens"] // SEQUENCE), "--seq", str(SEQUENCE)]
    run = peers.run_smolforge(options, [*work, "--prefill", "0", "--decode", "0", "--repeats", "3"])
    return sizes["tokens"] / run["rates"]["step"]


def measure(options, folder):
    """Seconds by device, what is varied, and its size."""
    todo = [(device, what, size) for device in options.device.split(",") for what in SIZES for size in SIZES[what]]
    secs = {key: [] for key in todo}
    for round_ in range(options.rounds):
        for done, (device, what, size) in enumerate(todo):
            secs[device, what, size].append(step_secs(options, folder, device, {**BASE, what: size}))
            total = options.rounds * len(todo)
            print(f"\r{round_ * len(todo) + done + 1} of {total} measurements", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {key: statistics.median(values) for key, values in secs.items()}


def draw(options, secs):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "smolforge"
    from matplotlib import pyplot

    devices = options.device.split(",")
    figure, panels = pyplot.subplots(len(devices), len(SIZES), figsize=(11, 3.2 * len(devices)), squeeze=False, layout="constrained")
    for row, device in zip(panels, devices):
        for panel, (what, sizes) in zip(row, SIZES.items()):
            measured = np.array([secs[device, what, size] for size in sizes])
            slope, offset = np.polyfit(sizes, measured, 1)
            fitted = offset + slope * np.array(sizes)
            r2 = 1 - ((measured - fitted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
            off = np.abs(measured / fitted - 1).max()
            print(f"{device:4} {what:11} r² {r2:.4f}, farthest {100 * off:3.0f} %: "
                  + ", ".join(f"{size}: {value:.3f} s" for size, value in zip(sizes, measured)))
            panel.plot([0, sizes[-1]], [offset, offset + slope * sizes[-1]], color="0.7")
            panel.plot(sizes, measured, "o", color="#c2410c")
            panel.set(title=f"{device}: r² = {r2:.3f}", xlabel=what, ylabel="seconds a step", xlim=0, ylim=0)
    figure.savefig(options.out, metadata={"Date": None})
    print(f"wrote {options.out}")


def main():
    options = arguments()
    try:
        if not peers.installed("matplotlib"):
            peers.install([sys.executable, "-m", "pip", "install", "-q", "matplotlib"], "matplotlib")
        with tempfile.TemporaryDirectory() as folder:
            draw(options, measure(options, Path(folder)))
    except Skipped as reason:
        sys.exit(f"scaling.py: {reason}")


if __name__ == "__main__":
    main()
