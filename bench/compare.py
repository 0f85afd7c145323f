"""Runs `smolforge bench` and pytorch.py in turns, whole processes, and prints the median ratios.

Called by compare.sh, which builds the one and installs the other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = ["lora", "qlora"]
PHASES = ["step", "forward", "backward", "optimizer", "prefill", "decode"]
HALVES = {f"{phase}, f16 weights": phase for phase in ["prefill", "decode"]}
TRAINING = {"step", "forward", "backward", "optimizer"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the built smolforge")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--preset", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--llamacpp", action="store_true", help="also against llama.cpp, through llama-cpp-python")
    parser.add_argument("--stock", action="store_true", help="also against burn's own ops: the same program without its kernels")
    parser.add_argument("--json", action="store_true", help="also print the runs and ratios as one JSON line")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    return options


def events(command, **environment):
    """The JSON objects that a process prints, one a line; other lines are passed over."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, **environment})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    found = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
    return found


def run_ours(options, work, **environment):
    rates, peak = {}, 0
    for event in events([options.binary, "bench", "--device", options.device, *work, "--json"], **environment):
        if event.get("event") == "bench":
            rates[event["phase"]] = event["tokens_per_sec"]
            if event["phase"] in TRAINING:
                peak = max(peak, event.get("peak_rss_bytes") or 0)
    if "step" not in rates:
        sys.exit("smolforge bench printed no event of phase step")
    return {"rates": rates, "peak": peak}


def run_pytorch(options, work):
    script = Path(__file__).with_name("pytorch.py")
    event = events([sys.executable, script, "--device", options.device, *work])[-1]
    rates = {phase: values["tokens_per_sec"] for phase, values in event["phases"].items()}
    return {"rates": rates, "peak": event["train_peak_rss_bytes"], "device": event["device"]}


def run_llamacpp(options):
    script = Path(__file__).with_name("llamacpp.py")
    event = events([sys.executable, script, "--device", options.device, "--preset", options.preset])[-1]
    return {"rates": {phase: values["tokens_per_sec"] for phase, values in event["phases"].items()}}


def run_methods(options, work):
    """Training tokens per second of an adapter: ours over both kinds of base, and peft's LoRA."""
    short = [*work, "--prefill", "0", "--decode", "0"]
    ours = {method: run_ours(options, [*short, "--method", method]) for method in METHODS}
    return ours, run_pytorch(options, [*short, "--method", "lora"])


def row(label, ours, peer, unit):
    """One line of the table and its ratios: ours over PyTorch's, pair by pair."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peer)]
    middle = statistics.median(ratios)
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"{label:<24}{statistics.median(ours):>12.1f}{statistics.median(peer):>12.1f} {unit:<9}"
          f"{middle:>7.2f}   {spread}")
    return {"median": middle, "min": min(ratios), "max": max(ratios)}


def main():
    options = arguments()
    work = ["--preset", options.preset, "--batch", str(options.batch), "--seq", str(options.seq)]
    ours, peer, tuned, stock, llama = [], [], [], [], []
    for pair in range(options.pairs):
        ours.append(run_ours(options, work))
        peer.append(run_pytorch(options, work))
        tuned.append(run_methods(options, work))
        if options.llamacpp:
            llama.append(run_llamacpp(options))
        if options.stock:
            stock.append(run_ours(options, work, SMOLFORGE_KERNELS="off"))
        print(f"pair {pair + 1}/{options.pairs}: step {ours[-1]['rates']['step']:.1f} against "
              f"{peer[-1]['rates']['step']:.1f} tokens/s", file=sys.stderr)

    print(f"{options.preset}, batch {options.batch}, sequence {options.seq}, {options.pairs} pairs, "
          f"{os.cpu_count()} cores; smolforge on {options.device}, PyTorch on {peer[0]['device']}")
    print(f"{'':<24}{'smolforge':>12}{'PyTorch':>12} {'':<9}{'ratio':>7}   min-max")
    ratios = {}
    for phase in PHASES:
        if all(phase in run["rates"] for run in ours + peer):
            values = [[run["rates"][phase] for run in side] for side in (ours, peer)]
            ratios[phase] = row(phase, *values, "tokens/s")
    for label, phase in HALVES.items():
        if all(label in run["rates"] for run in ours) and all(phase in run["rates"] for run in peer):
            values = [[run["rates"][label] for run in ours], [run["rates"][phase] for run in peer]]
            ratios[label] = row(label, *values, "tokens/s")
    if all(run["peak"] > 0 for run in ours):
        peaks = [[run["peak"] / 2**20 for run in side] for side in (ours, peer)]
        ratios["peak_memory"] = row("peak memory, training", *peaks, "MiB")
    rates = {method: [ours[method]["rates"]["step"] for ours, _ in tuned] for method in METHODS}
    ratios["lora_step"] = row("LoRA step, peft", rates["lora"], [peft["rates"]["step"] for _, peft in tuned], "tokens/s")
    print(f"{'':<24}{'QLoRA':>12}{'LoRA':>12}")
    ratios["qlora_step"] = row("both smolforge", rates["qlora"], rates["lora"], "tokens/s")
    if llama:
        print(f"{'':<24}{'smolforge':>12}{'llama.cpp':>12}")
        for halves, phase in HALVES.items():
            label = halves if all(halves in run["rates"] for run in ours) else phase  # the CPU computes from f32
            values = [[run["rates"][label] for run in ours], [run["rates"][phase] for run in llama]]
            ratios[f"{label}, llama.cpp"] = row(label, *values, "tokens/s")
    if stock:
        print(f"{'':<24}{'smolforge':>12}{'burn ops':>12}")
        for phase in PHASES:
            if all(phase in run["rates"] for run in ours + stock):
                values = [[run["rates"][phase] for run in side] for side in (ours, stock)]
                ratios[f"{phase}, burn ops"] = row(phase, *values, "tokens/s")
    if options.json:
        print(json.dumps({"event": "bench_compare", "ratios": ratios, "ours": ours, "pytorch": peer, "tuned": tuned, "burn_ops": stock,
                          "llamacpp": llama}))


if __name__ == "__main__":
    main()
