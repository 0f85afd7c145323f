"""The work of `smolforge bench` done by PyTorch: a training step, prefill and decode of a Llama.

The weights and the batch are smolforge's, see weights.py; no dropout. Prints one JSON line:
{"event": "bench_pytorch", "phases": {"step": {"secs", "tokens_per_sec"}, ...}, "losses", "train_peak_rss_bytes", ...}.
Seconds are medians of the repeats after one warm-up. Phases: step = forward + backward + optimizer.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from contextlib import nullcontext

import torch
import transformers
import weights
from presets import EPS, PRESETS
from safetensors import safe_open
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smollm2-135m")
    for name in ["hidden", "intermediate", "layers", "heads", "kv-heads", "vocab"]:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's; the weights are PyTorch's own then")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: CUDA or Metal where there is one")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="transformers' own default is sdpa")
    parser.add_argument("--method", choices=["full", "lora"], default="full", help="lora: peft, rank 16 on all linear layers")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: training by autocast, inference with bf16 weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the step and the prefill; decoding stays as it is")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt; 0 leaves it out")
    parser.add_argument("--context", type=int, default=512, help="tokens in the cache before decoding, as many as smolforge reads before")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded one by one; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    return parser.parse_args()


def build(options):
    shape = dict(PRESETS[options.preset])
    shape.update({name: value for name in shape if (value := getattr(options, name, None)) is not None})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=8192, rms_norm_eps=EPS, tie_word_embeddings=True,
        initializer_range=shape["hidden"] ** -0.5,
        rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]},
        attn_implementation=options.attention)
    model = LlamaForCausalLM(config).float()
    if shape == PRESETS[options.preset]:
        with safe_open(weights.folder(options.preset) / "model.safetensors", "pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(name))
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model


def peak_rss_bytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def training(model, options, device):
    """Medians of the seconds of forward (with the loss), backward and optimizer, and the loss before each update."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
    batch = weights.random_batch(options.batch, options.seq, model.config.vocab_size)
    ids, targets = (torch.tensor(tokens, device=device).view(options.batch, options.seq) for tokens in batch)
    cast = torch.autocast(device, torch.bfloat16) if options.dtype == "bf16" else nullcontext()
    times, losses = {"forward": [], "backward": [], "optimizer": []}, []

    def forward():
        with cast:
            logits = model(ids, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    if options.compile:
        forward = torch.compile(forward)
    model.train()
    for repeat in range(options.repeats + 1):
        marks = [time.perf_counter()]
        loss = forward()
        synchronize(device)
        marks.append(time.perf_counter())
        loss.backward()
        synchronize(device)
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        synchronize(device)
        marks.append(time.perf_counter())
        del loss
        if repeat > 0:
            for phase, start, end in zip(times, marks, marks[1:]):
                times[phase].append(end - start)
    medians = {phase: statistics.median(values) for phase, values in times.items()}
    steps = [sum(values) for values in zip(*times.values())]
    return {"step": statistics.median(steps), **medians}, losses


def loss_of_first(model, options, device):
    """Mean loss of the batch's first 16 tokens."""
    inputs, targets = (torch.tensor([tokens[:16]], device=device)
                       for tokens in weights.random_batch(options.batch, options.seq, model.config.vocab_size))
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(inputs, use_cache=False).logits[0], targets[0]).item()


def prefill(model, ids, device):
    """The cache after `ids`, the next token and the seconds until it is known."""
    start = time.perf_counter()
    cache = DynamicCache(config=model.config)
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    token = logits[:, -1].argmax(-1, keepdim=True)
    synchronize(device)
    return cache, token, time.perf_counter() - start


def decode(model, cache, token, count):
    """Seconds to decode `count` tokens greedily, one at a time, each read back."""
    start = time.perf_counter()
    for _ in range(count):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        token.item()
    return time.perf_counter() - start


def main():
    options = arguments()
    import_rss = peak_rss_bytes()
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    device = "cpu"
    if options.device == "gpu":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    model = build(options).to(device)
    first = loss_of_first(model, options, device)
    phases = {}

    def record(phase, secs, tokens):
        phases[phase] = {"secs": round(secs, 6), "tokens_per_sec": round(tokens / secs, 3)}

    medians, losses = training(model, options, device)
    for phase, secs in medians.items():
        record(phase, secs, options.batch * options.seq)
    train_peak = peak_rss_bytes()

    model.eval()
    if options.dtype == "bf16":
        model = model.to(torch.bfloat16)
    ahead = torch.compile(model) if options.compile else model
    with torch.inference_mode():
        vocab = model.config.vocab_size
        if options.prefill > 0:
            ids = torch.randint(vocab, (1, options.prefill), device=device)
            secs = [prefill(ahead, ids, device)[2] for _ in range(options.repeats + 1)][1:]
            record("prefill", statistics.median(secs), options.prefill)
        if options.decode > 0:
            ids = torch.randint(vocab, (1, options.context), device=device)
            secs = []
            for _ in range(options.repeats + 1):
                cache, token, _ = prefill(model, ids, device)
                secs.append(decode(model, cache, token, options.decode))
            record("decode", statistics.median(secs[1:]), options.decode)

    print(json.dumps({
        "event": "bench_pytorch", "preset": options.preset, "device": device, "attention": options.attention,
        "method": options.method, "dtype": options.dtype, "compile": options.compile, "batch": options.batch, "seq": options.seq,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in model.parameters()), "losses": losses, "loss_of_first": first,
        "phases": phases, "import_rss_bytes": import_rss, "train_peak_rss_bytes": train_peak, "peak_rss_bytes": peak_rss_bytes(),
    }))


if __name__ == "__main__":
    main()
