"""Times llama.cpp through llama-cpp-python, F16 weights: prefill and decode, as `smolforge bench` does.

The weights are smolforge's, see weights.py. Prints one JSON line with the mean loss of the batch of one sequence, which the
f16 rounding alone may change. Called by compare.py, which installs what it needs.
"""

import argparse
import json
import os
import statistics
import time

import gguf
import llama_cpp
import numpy as np
import weights
from llama_cpp import Llama
from presets import EPS, PRESETS

POSITIONS = 8192
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="smollm2-135m")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: where llama.cpp was built for one")
    parser.add_argument("--seq", type=int, default=128, help="tokens of the batch whose loss is told")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    return parser.parse_args()


def renamed(name):
    """GGUF's name of a tensor."""
    parts = name.removesuffix(".weight").split(".", 3)
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{NAMES[parts[3]]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]


def paired(values, heads):
    """Rows of q and k in llama.cpp's order: it turns neighbours, Hugging Face turns halves of a head."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_model(path, shape):
    """The model as GGUF: matrices in F16, norms in F32, the head tied to the table; no tokenizer."""
    hidden, heads, kv_heads, vocab = shape["hidden"], shape["heads"], shape["kv_heads"], shape["vocab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")
    for name, values in weights.tensors(shape):
        if ".q_proj" in name or ".k_proj" in name:
            values = paired(values, heads if ".q_proj" in name else kv_heads)
        writer.add_tensor(renamed(name), values.astype(np.float16) if values.ndim == 2 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_file(preset):
    """The GGUF of a preset, written at the first call."""
    path = weights.folder(preset) / "model-f16.gguf"
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        write_model(draft, PRESETS[preset])
        draft.rename(path)
    return path


def loss(path, options, **placed):
    """Mean loss of the batch of one sequence."""
    inputs, targets = weights.random_batch(1, options.seq, PRESETS[options.preset]["vocab"])
    model = Llama(str(path), n_ctx=options.seq, logits_all=True, verbose=False, **placed)
    model.eval(inputs)
    logits = model.scores[:options.seq].astype(np.float64)
    most = logits.max(axis=1)
    sums = np.log(np.exp(logits - most[:, None]).sum(axis=1)) + most
    return float((sums - logits[np.arange(options.seq), targets]).mean())


def evaluated(model, tokens):
    """Evaluates tokens and waits until the next token's logits are there: a graphics device is not waited for otherwise."""
    model.eval(tokens)
    llama_cpp.llama_get_logits(model.ctx)


def main():
    options = arguments()
    shape = PRESETS[options.preset]
    path = model_file(options.preset)
    threads = options.threads or None
    placed = dict(n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1 if options.device == "gpu" else 0)
    if options.device == "gpu" and not llama_cpp.llama_supports_gpu_offload():
        raise SystemExit("this llama.cpp was built without a graphics device")
    mean = loss(path, options, **placed)
    model = Llama(str(path), n_ctx=options.prefill + options.decode + 1, n_batch=512, verbose=False, **placed)
    prompt = np.random.default_rng(3).integers(0, shape["vocab"], options.prefill).tolist()
    prefill, decode = [], []
    for repeat in range(options.repeats + 1):
        model.reset()
        started = time.perf_counter()
        evaluated(model, prompt)
        middle = time.perf_counter()
        for token in range(options.decode):
            evaluated(model, [token])
        if repeat > 0:
            prefill.append(middle - started)
            decode.append(time.perf_counter() - middle)
    phases = {"prefill": (options.prefill, prefill), "decode": (options.decode, decode)}
    rates = {phase: {"tokens_per_sec": tokens / statistics.median(secs)} for phase, (tokens, secs) in phases.items()}
    print(json.dumps({"event": "bench_llamacpp", "device": options.device, "version": llama_cpp.__version__, "phases": rates,
                      "losses": [mean]}))


if __name__ == "__main__":
    main()
