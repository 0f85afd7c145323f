"""What smolforge is measured against: how a peer is installed, and how it is run once, as a process of its own.

A `prepare_*` makes a peer ready and raises `Skipped` with the reason where it cannot; a `run_*` gives
{"rates": {phase: tokens per second}, "losses": [...], "peak": bytes or 0}.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import weights
from presets import PRESETS

HERE = Path(__file__).parent
ROOT = HERE.parent
TRAINING = {"step", "forward", "backward", "optimizer"}
BROWSER_PRESET = "nano"
# A software adapter computes longer prompts wrongly in ONNX Runtime, see README.md; the cache is as long in both programs.
BROWSER_WORK = {"prefill": 16, "decode": 32}
BROWSER_PACKAGES = ["playwright-core@1.64.1", "@huggingface/transformers@4.3.1"]
PATIENCE_SECS = 900  # for one run of one program
LLAMA_PACKAGE = "llama-cpp-python==0.3.36"


class Skipped(Exception):
    """A peer that cannot be measured here: one sentence."""


def events(command, **environment):
    """The JSON objects that a process prints, one a line; other lines are passed over."""
    name = f"{Path(command[0]).name} {Path(command[1]).name}"
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE_SECS,
                              env={**os.environ, **environment})
    except subprocess.TimeoutExpired:
        raise Skipped(f"{name}: not done after {PATIENCE_SECS} seconds") from None
    if done.returncode != 0:
        raise Skipped(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def install(command, what, **environment):
    """Runs a package manager or a compiler, whose last words count where it fails."""
    print(f"compare.py: installing {what}", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env={**os.environ, **environment})
    if done.returncode != 0:
        wrong = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines()[-3:]
        raise Skipped(f"{what} could not be installed: {'; '.join(wrong[:2])[:400]}")


def found(event, **more):
    rates = {phase: values["tokens_per_sec"] for phase, values in event["phases"].items()}
    return {"rates": rates, "losses": event.get("losses") or [], "peak": event.get("train_peak_rss_bytes") or 0, **more}


def run_smolforge(options, work, **environment):
    rates, losses, peak = {}, [], 0
    for event in events([options.binary, "bench", *work, "--json"], **environment):
        if event.get("event") == "bench":
            rates[event["phase"]] = event["tokens_per_sec"]
            losses = event.get("losses") or losses
            if event["phase"] in TRAINING:
                peak = max(peak, event.get("peak_rss_bytes") or 0)
    return {"rates": rates, "losses": losses, "peak": peak}


def run_pytorch(work):
    event = events([sys.executable, HERE / "pytorch.py", *work])[-1]
    return found(event, device=event["device"], version=event["torch"], loss_of_first=event["loss_of_first"])


def installed(packages, place=None):
    """Whether this Python finds the modules, in a folder of its own if one is named."""
    path = {"PYTHONPATH": str(place)} if place else {}
    check = subprocess.run([sys.executable, "-c", f"import {packages}"], capture_output=True, check=False, env={**os.environ, **path})
    return check.returncode == 0


def prepare_llamacpp(options):
    """Built from source, for the graphics device into a folder of its own."""
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    if not installed("gguf"):
        install([*pip, "gguf"], "gguf")
    if options.device == "cpu":
        if not installed("llama_cpp"):
            install([*pip, LLAMA_PACKAGE], "llama.cpp, which takes some minutes")
        return
    place = weights.cache("llamacpp-vulkan")
    if installed("llama_cpp", place) and place.exists():
        return
    if shutil.which("glslc") is None:
        raise Skipped("llama.cpp's Vulkan backend needs glslc (Debian: glslc libvulkan-dev spirv-headers)")
    include = Path(os.environ.get("VULKAN_HEADERS") or "/usr/include")
    structs = include / "vulkan" / "vulkan_structs.hpp"
    if not structs.exists() or "LayerSettingEXT" not in structs.read_text():
        raise Skipped(f"llama.cpp's Vulkan backend needs newer Vulkan headers than those in {include}; VULKAN_HEADERS names others")
    install([*pip, "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python", "--target", place, LLAMA_PACKAGE],
            "llama.cpp with Vulkan, which takes a quarter of an hour", CMAKE_ARGS=f"-DGGML_VULKAN=on -DVulkan_INCLUDE_DIR={include}")


def run_llamacpp(options, work):
    environment = {}
    if options.device == "gpu":
        # Without a device named it takes no adapter that is software.
        visible = os.environ.get("GGML_VK_VISIBLE_DEVICES") or "0"
        environment = {"PYTHONPATH": str(weights.cache("llamacpp-vulkan")), "GGML_VK_VISIBLE_DEVICES": visible}
    return found(events([sys.executable, HERE / "llamacpp.py", "--device", options.device, *work], **environment)[-1])


def prepare_meganeura(options):
    if options.device == "cpu":
        raise Skipped("meganeura computes on graphics devices alone")
    if shutil.which("cargo") is None:
        raise Skipped("meganeura needs cargo")
    place = weights.cache("meganeura")
    install(["cargo", "build", "--release", "--locked", "--manifest-path", HERE / "meganeura" / "Cargo.toml", "--target-dir", place],
            "meganeura")


def run_meganeura(options, context, decode):
    shape = PRESETS[options.preset]
    inputs, targets = weights.random_batch(1, options.seq, shape["vocab"])
    if shape["hidden"] // shape["heads"] != 64:
        decode = 0  # its attention over a cache is written for heads of 64

    def listed(numbers):
        return ",".join(str(int(number)) for number in numbers)

    sizes = [shape[name] for name in ["hidden", "intermediate", "layers", "heads", "kv_heads", "vocab", "theta"]]
    command = [weights.cache("meganeura") / "release" / "meganeura-bench", "--weights", weights.folder(options.preset),
               "--shape", listed(sizes), "--inputs", listed(inputs), "--targets", listed(targets), "--context", str(context),
               "--decode", str(decode), "--repeats", str(options.repeats)]
    event = events(command)[-1]
    return found(event, loss_of_first=event["loss_of_first"])


def prepare_browser(options):
    for program in ["node", "npm", os.environ.get("CHROMIUM") or "chromium"]:
        if shutil.which(program) is None:
            raise Skipped(f"the browser needs {program}")
    if not installed("onnx"):
        install([sys.executable, "-m", "pip", "install", "-q", "onnx"], "onnx")
    place = weights.cache("browser")
    if not (place / "node_modules" / "@huggingface" / "transformers").exists():
        place.mkdir(parents=True, exist_ok=True)
        install(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", place, *BROWSER_PACKAGES], "transformers.js")
    page = ROOT / "web" / "dist" / "smolforge_bg.wasm"
    sources = [path for folder in ["app", "engine", "shaders", "web/bindgen"] for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    if not page.exists() or page.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        install([ROOT / "web" / "build.sh"], "the page, web/dist")


def run_browser(options, side):
    import onnx_model

    inputs, targets = weights.random_batch(1, options.browser_seq, PRESETS[BROWSER_PRESET]["vocab"])
    work = {"packages": str(weights.cache("browser")), "page": str(ROOT / "web" / "dist"), "preset": BROWSER_PRESET,
            "model": str(onnx_model.folder(BROWSER_PRESET)), "inputs": inputs, "targets": targets, "repeats": options.repeats,
            **BROWSER_WORK}
    return found(events(["node", HERE / "browser.mjs", side, json.dumps(work)])[-1])
