"""Times llama.cpp on a model of random F16 weights, through llama-cpp-python: prefill and decode, as `smolforge bench` does.

Prints one JSON line. Called by compare.py; `pip install llama-cpp-python gguf` (built from source) installs what it needs.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from llama_cpp import Llama
from presets import PRESETS

POSITIONS = 8192


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="smollm2-135m")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: where llama.cpp was built for one")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    return parser.parse_args()


def write_model(path, shape):
    """A Llama as GGUF: matrices in F16, norms in F32, the head tied to the table; no tokenizer. Returns its parameters."""
    hidden, heads, kv_heads, vocab = shape["hidden"], shape["heads"], shape["kv_heads"], shape["vocab"]
    head = hidden // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")
    random, parameters = np.random.default_rng(1), 0

    def matrix(name, rows, columns):
        nonlocal parameters
        parameters += rows * columns
        writer.add_tensor(f"{name}.weight", (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16))

    def norm(name):
        nonlocal parameters
        parameters += hidden
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", vocab, hidden)
    for layer in range(shape["layers"]):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", heads * head, hidden)
        matrix(f"{block}.attn_k", kv_heads * head, hidden)
        matrix(f"{block}.attn_v", kv_heads * head, hidden)
        matrix(f"{block}.attn_output", hidden, heads * head)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", shape["intermediate"], hidden)
        matrix(f"{block}.ffn_up", shape["intermediate"], hidden)
        matrix(f"{block}.ffn_down", hidden, shape["intermediate"])
    norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return parameters


def main():
    options = arguments()
    shape = PRESETS[options.preset]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        parameters = write_model(path, shape)
        threads = options.threads or None
        model = Llama(str(path), n_ctx=options.prefill + options.decode + 1, n_batch=512, n_threads=threads, n_threads_batch=threads,
                      n_gpu_layers=-1 if options.device == "gpu" else 0, verbose=False)
        read = llama_cpp.llama_model_n_params(model.model)
        assert read == parameters, f"llama.cpp has read {read} parameters of {parameters}"
        prompt = np.random.default_rng(3).integers(0, shape["vocab"], options.prefill).tolist()
        prefill, decode = [], []
        for repeat in range(options.repeats + 1):
            model.reset()
            started = time.perf_counter()
            model.eval(prompt)
            middle = time.perf_counter()
            for token in range(options.decode):
                model.eval([token])
            if repeat > 0:
                prefill.append(middle - started)
                decode.append(time.perf_counter() - middle)
        phases = {"prefill": (options.prefill, prefill), "decode": (options.decode, decode)}
        rates = {phase: {"tokens_per_sec": tokens / statistics.median(secs)} for phase, (tokens, secs) in phases.items()}
        print(json.dumps({"event": "bench_llamacpp", "device": options.device, "phases": rates}))


if __name__ == "__main__":
    main()
