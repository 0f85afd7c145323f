"""Trains the preset nano for many steps on the project's own sources: does it stay as fast and as small, and does mixed precision
learn as f32 does?

    bench/steady.sh [--device cpu] [--precision f32,mixed] [--steps 2000]

Tells tokens per second and resident memory of every tenth of a run, and how far the second precision's loss is from the first's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import ROOT

SETTINGS = ["--preset", "nano", "--batch-size", "4", "--accumulation", "1", "--sequence-length", "128", "--warmup-steps", "50",
            "--eval-every", "0", "--sample-every", "0", "--save-every", "100000", "--source", f"code={ROOT}/engine/src/**/*.rs"]
SECS = 0.5  # between two looks at the memory


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the built smolforge")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="f32", help="one or two of f32 and mixed")
    parser.add_argument("--steps", type=int, default=2000)
    return parser.parse_args()


def resident_mib(process):
    """Memory of a process in main memory; none where the system does not tell."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(sizes[0]) / 1024 if sizes else None


def train(options, precision, folder):
    """Steps as the log has them, and (seconds since 1970, MiB) of looks at the memory."""
    run = Path(folder) / precision
    command = [options.binary, "train", *SETTINGS, "--out", run, "--device", options.device, "--precision", precision,
               "--steps", str(options.steps)]
    with open(f"{run}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        memory = []
        while process.poll() is None:
            memory.append((time.time(), resident_mib(process)))
            time.sleep(SECS)
    if process.returncode != 0:
        sys.exit(f"steady.py: {Path(f'{run}.log').read_text().strip().splitlines()[-1]}")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "step"], [look for look in memory if look[1] is not None]


def tenths(steps):
    """The steps in ten parts, without those before the speed is known."""
    steps = steps[len(steps) // 50:]
    return [steps[len(steps) * i // 10:len(steps) * (i + 1) // 10] for i in range(10)]


def main():
    options = arguments()
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision.split(","):
            steps, memory = train(options, precision, folder)
            losses[precision] = [step["loss"] for step in steps]
            speeds, sizes = [], []
            for part in tenths(steps):
                secs = part[-1]["elapsed_secs"] - part[0]["elapsed_secs"]
                speeds.append(sum(step["tokens"] for step in part[1:]) / secs)
                looks = [mib for when, mib in memory if part[0]["time"] <= when <= part[-1]["time"]]
                sizes.append(statistics.median(looks) if looks else float("nan"))
            print(f"{options.device}, {precision}, {len(steps)} steps, by tenths")
            print("tokens/s  " + "  ".join(f"{speed:7.0f}" for speed in speeds) + f"   spread {100 * (max(speeds) / min(speeds) - 1):.1f} %")
            print("MiB       " + "  ".join(f"{size:7.1f}" for size in sizes) + f"   last over first {100 * (sizes[-1] / sizes[0] - 1):+.2f} %")
    if len(losses) == 2:
        (first, one), (second, other) = losses.items()
        parts = [(statistics.mean(a), statistics.mean(b)) for a, b in zip(*([curve[i:i + 50] for i in range(0, len(curve), 50)]
                                                                            for curve in (one, other)))]
        apart = max(abs(b / a - 1) for a, b in parts)
        print(f"loss of {second} beside {first}, means of 50 steps: " + ", ".join(f"{b:.4f}/{a:.4f}" for a, b in parts[::4] + parts[-1:])
              + f"; at most {100 * apart:.2f} % apart")


if __name__ == "__main__":
    main()
