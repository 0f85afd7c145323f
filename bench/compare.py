"""Runs `smolforge bench` and its peers in turns, whole processes, and prints a table of ratios.

Called by compare.sh, which builds the one and installs PyTorch; the other peers are installed here, or skipped aloud.
"""

import argparse
import json
import os
import statistics
import sys

import peers
from peers import Skipped
from presets import PRESETS

PHASES = ["step", "forward", "backward", "optimizer"]
INFERENCE = ["prefill", "decode"]
HALVES = {"prefill": "prefill, f16 weights", "decode": "decode, f16 weights"}
PEERS = {"cpu": ["llamacpp"], "gpu": ["meganeura", "llamacpp", "burn", "browser"]}
VARIANTS = {"bf16": ["--dtype", "bf16"], "compile": ["--compile"]}
# How far apart, relatively, the losses of two programs of the same model may be: f16 and bf16 round by less, another model does not.
TOLERANCE = 5e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the built smolforge")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--preset", choices=PRESETS, default="smollm2-135m")
    parser.add_argument("--batch", help="sequences in a step, with commas for several steps [default: cpu 4,1; gpu 1]")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt, and of the cache before decoding")
    parser.add_argument("--decode", type=int, help="tokens decoded one by one [default: cpu 32, gpu 8]")
    parser.add_argument("--repeats", type=int, help="timed repetitions in a process [default: cpu 3, gpu 1]")
    parser.add_argument("--peers", help="besides PyTorch, with commas: llamacpp, meganeura, burn (our program by burn's own ops), browser, "
                        "variants (PyTorch in bf16 and compiled) [default: cpu llamacpp; gpu all but variants]")
    parser.add_argument("--json", action="store_true", help="also print the runs and ratios as one JSON line")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    options.batches = [int(batch) for batch in (options.batch or {"cpu": "4,1", "gpu": "1"}[options.device]).split(",")]
    options.peers = PEERS[options.device] if options.peers is None else [peer for peer in options.peers.split(",") if peer]
    unknown = set(options.peers) - {*PEERS["gpu"], "variants"}
    if unknown:
        parser.error(f"--peers: nobody knows {', '.join(sorted(unknown))}")
    options.repeats = options.repeats or {"cpu": 3, "gpu": 1}[options.device]
    options.decode = {"cpu": 32, "gpu": 8}[options.device] if options.decode is None else options.decode
    options.browser_seq, options.references = 32, {}
    return options


def sides(options):
    """What runs in every pair, in this order: a name and what measures it once."""
    lengths = ["--prefill", str(options.prefill), "--decode", str(options.decode)]
    shape = ["--preset", options.preset, "--repeats", str(options.repeats)]
    none = ["--prefill", "0", "--decode", "0"]
    found = {}

    def both(name, work, theirs=()):
        work = [*shape, "--device", options.device, *work]
        found[f"smolforge{name}"] = lambda: peers.run_smolforge(options, work)
        found[f"pytorch{name}"] = lambda: peers.run_pytorch([*work, *theirs])

    for batch in options.batches:
        work = ["--batch", str(batch), "--seq", str(options.seq)]
        if batch != options.batches[0]:
            both(f" {batch}", [*work, *none])
            continue
        both(f" {batch}", [*work, *lengths], theirs=["--context", str(options.prefill)])
        if "llamacpp" in options.peers:
            found["llamacpp"] = lambda: peers.run_llamacpp(options, [*shape, "--seq", str(options.seq), *lengths])
        if "meganeura" in options.peers:
            found["meganeura"] = lambda: peers.run_meganeura(options, options.prefill, options.decode)
        if "burn" in options.peers:
            stock = [*shape, "--device", options.device, "--batch", "1", "--seq", str(options.seq), *lengths]
            found["burn"] = lambda: peers.run_smolforge(options, stock, SMOLFORGE_KERNELS="off")
    first = ["--batch", str(options.batches[0]), "--seq", str(options.seq)]
    both(" lora", [*first, *none, "--method", "lora"])
    qlora = [*shape, "--device", options.device, *first, *none, "--method", "qlora"]
    found["smolforge qlora"] = lambda: peers.run_smolforge(options, qlora)
    if "variants" in options.peers:
        for name, flags in VARIANTS.items():
            work = [*shape, "--device", options.device, *first, *lengths, "--context", str(options.prefill), *flags]
            found[f"pytorch {name}"] = lambda work=work: peers.run_pytorch(work)
    if "browser" in options.peers:
        found["browser smolforge"] = lambda: peers.run_browser(options, "smolforge")
        found["browser transformers"] = lambda: peers.run_browser(options, "transformers")
    return found


def prepared(options):
    """The peers that can be measured here; why others cannot is said."""
    prepare = {"llamacpp": peers.prepare_llamacpp, "meganeura": peers.prepare_meganeura, "browser": peers.prepare_browser}
    ready = []
    for peer in options.peers:
        try:
            prepare.get(peer, lambda _: None)(options)
            ready.append(peer)
        except Skipped as reason:
            print(f"skipped: {peer}: {reason}", file=sys.stderr)
    return ready


def expected(options, runs, side):
    """PyTorch's run of the batch whose losses a side tells: measured in this pair, or made once for this."""
    if side.startswith("browser"):
        batch = (peers.BROWSER_PRESET, 1, options.browser_seq)
    elif side in ("llamacpp", "meganeura", "burn"):
        batch = (options.preset, 1, options.seq)
    else:
        name = side.split()[-1]
        batch = (options.preset, int(name) if name.isdigit() else options.batches[0], options.seq)
    measured = f"pytorch {batch[1]}"
    if batch[0] == options.preset and runs.get(measured):
        return runs[measured][0]
    if batch not in options.references:
        work = ["--preset", batch[0], "--batch", str(batch[1]), "--seq", str(batch[2]), "--prefill", "0", "--decode", "0"]
        options.references[batch] = peers.run_pytorch([*work, "--repeats", "1"])
    return options.references[batch]


def check(options, runs, side, run):
    """Refuses a run whose losses, before and after updates, are not PyTorch's."""
    if side == "smolforge qlora":
        return  # weights of 4 bits are others
    right = expected(options, runs, side)
    pairs = list(zip(run["losses"], right["losses"]))
    if side.endswith(" lora"):
        pairs = pairs[:1]  # adapters begin at random
    if run.get("loss_of_first") is not None:
        pairs.append((run["loss_of_first"], right["loss_of_first"]))
    if not pairs:
        raise Skipped("tells no loss")
    for mine, theirs in pairs:
        if not abs(mine - theirs) <= TOLERANCE * theirs:
            raise Skipped(f"another model: its losses are {run['losses']}, PyTorch's {right['losses']}")
    run["apart"] = max(abs(mine - theirs) / theirs for mine, theirs in pairs)


def measure(options):
    """All runs of all sides: {side: [run, ...]}; a peer that fails is left out from then on."""
    todo = sides(options)
    runs = {side: [] for side in todo}
    for pair in range(options.pairs):
        for side in list(todo):
            try:
                run = todo[side]()
                check(options, runs, side, run)
                runs[side].append(run)
            except Skipped as reason:
                if side.startswith("smolforge") or side.removeprefix("pytorch ").isdigit():
                    sys.exit(f"{side}: {reason}")
                print(f"skipped: {side}: {reason}", file=sys.stderr)
                del todo[side], runs[side]
        step = [runs[f"{side} {options.batches[0]}"][-1]["rates"]["step"] for side in ["smolforge", "pytorch"]]
        print(f"pair {pair + 1}/{options.pairs}: step {step[0]:.1f} against {step[1]:.1f} tokens/s", file=sys.stderr)
    return runs


class Table:
    """Rows of ratios, ours over the peer's, pair by pair; what either side has not measured gives no row."""

    def __init__(self, runs):
        self.runs, self.ratios, self.heading = runs, {}, None

    def values(self, side, phase):
        """The rates of a phase, or the peak memory in MiB."""
        runs = self.runs.get(side) or [{"rates": {}, "peak": 0}]
        if phase == "peak memory":
            return [run["peak"] / 2**20 for run in runs] if all(run["peak"] for run in runs) else None
        return [run["rates"][phase] for run in runs] if all(run["rates"].get(phase) for run in runs) else None

    def head(self, title, peer, mine="smolforge"):
        """Names the columns of the rows that follow, if any do."""
        self.heading = f"{title:<28}{mine:>12}{peer:>14} {'':<9}{'ratio':>7}   min-max"

    def row(self, label, ours, peer, key):
        """One line: the medians of both, and median, least and greatest ratio."""
        if ours is None or peer is None:
            return
        if self.heading:
            print(self.heading)
            self.heading = None
        ratios = [mine / theirs for mine, theirs in zip(ours, peer)]
        middle, unit = statistics.median(ratios), "MiB" if label == "peak memory" else "tokens/s"
        print(f"{label:<28}{statistics.median(ours):>12.1f}{statistics.median(peer):>14.1f} {unit:<9}{middle:>7.2f}   "
              f"{min(ratios):.2f}-{max(ratios):.2f}")
        self.ratios[key] = {"median": middle, "min": min(ratios), "max": max(ratios)}

    def block(self, title, peer, phases, ours, theirs):
        """A heading and the rows of some phases; of decoding and prefill also those of our f16 weights."""
        if theirs not in self.runs or ours not in self.runs:
            return
        self.head(title, peer)
        for phase in phases:
            for label in [phase, HALVES.get(phase)]:
                if label:
                    mine = self.values(ours, label)
                    same = self.values(theirs, label) if theirs == "burn" else None
                    self.row(label, mine, same or self.values(theirs, phase), f"{label}, {theirs}")


def show(options, runs):
    """Prints the table and gives the ratios."""
    table, first = Table(runs), options.batches[0]
    main = f"smolforge {first}"
    print(f"{options.preset}, {options.pairs} pairs, {os.cpu_count()} cores; smolforge on {options.device}, "
          f"PyTorch {runs[f'pytorch {first}'][0]['version']} on {runs[f'pytorch {first}'][0]['device']}")
    for batch in options.batches:
        table.block(f"{batch} x {options.seq}", "PyTorch", [*PHASES, "peak memory"], f"smolforge {batch}", f"pytorch {batch}")
    table.block("inference", "PyTorch", INFERENCE, main, f"pytorch {first}")
    eager, llama = table.values(f"pytorch {first}", "prefill"), table.values("llamacpp", "prefill")
    if eager and llama and options.device == "cpu":
        best = [max(pair) for pair in zip(eager, llama)]
        table.row("prefill, the better peer", table.values(main, "prefill"), best, "prefill, best")
    for variant in VARIANTS:
        table.block(f"{first} x {options.seq}", variant, [*PHASES[:1], *INFERENCE, "peak memory"], main, f"pytorch {variant}")
    table.block("LoRA", "peft", ["step", "peak memory"], "smolforge lora", "pytorch lora")
    table.head("both smolforge", "LoRA", "QLoRA")
    table.row("step", *(table.values(f"smolforge {method}", "step") for method in ["qlora", "lora"]), "qlora, lora")
    table.block("inference", "llama.cpp", INFERENCE, main, "llamacpp")
    for theirs, peer in [("meganeura", "meganeura"), ("burn", "burn ops")]:
        table.block(f"1 x {options.seq}", peer, [*PHASES, "peak memory"], "smolforge 1", theirs)
        table.block("inference", peer, INFERENCE, main, theirs)
    table.block(f"{peers.BROWSER_PRESET} in Chromium", "transformers", ["decode"], "browser smolforge", "browser transformers")
    apart = {side: max(run["apart"] for run in found) for side, found in runs.items()
             if not side.startswith("pytorch") and all("apart" in run for run in found)}
    print("losses, relatively apart from PyTorch's at most: " + ", ".join(f"{side} {most:.0e}" for side, most in apart.items()))
    return table.ratios


def main():
    options = arguments()
    options.peers = prepared(options)
    runs = measure(options)
    ratios = show(options, runs)
    if options.json:
        print(json.dumps({"event": "bench_compare", "preset": options.preset, "device": options.device, "ratios": ratios, "runs": runs}))


if __name__ == "__main__":
    main()
