"""The random weights and the batch of `smolforge bench`, made again, so that every program computes the same thing.

smolforge draws a matrix row by row: row `i` of tensor `name` is the stream `i` of a SplitMix64 whose seed is the name's hash,
turned into normal numbers in pairs (Box & Muller). `python bench/weights.py PRESET` writes the folder for a look.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from presets import EPS, PRESETS

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
WEIGHTS_SEED = 1
BATCH_SEED = 2
ROWS_AT_ONCE = 1024


def cache(name):
    """A folder outside the checkout for what is made or installed once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolforge" / name


def mix(x):
    """SplitMix64's mixing of one number, or of an array of them."""
    if isinstance(x, np.ndarray):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(state, count):
    """`count` numbers from each of some states, in 0 <= x < 1: [states, count]."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return (mix(state[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def matrix(name, rows, columns, deviation):
    """Normal numbers of f32 as smolforge draws them for the tensor of this name."""
    seed = WEIGHTS_SEED
    for byte in name.encode():
        seed = mix(seed ^ byte)
    values = np.empty((rows, columns), np.float32)
    for first in range(0, rows, ROWS_AT_ONCE):
        index = mix(np.arange(first, min(first + ROWS_AT_ONCE, rows), dtype=np.uint64) + np.uint64(GOLDEN))
        turned = (index << np.uint64(32)) | (index >> np.uint64(32))
        draws = uniform(mix(turned + np.uint64((mix(seed) + GOLDEN) & MASK)), columns)  # `columns` is even
        radius = np.sqrt(-2.0 * np.log(1.0 - draws[:, 0::2]))
        angle = 2.0 * math.pi * draws[:, 1::2]
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        values[first:first + len(index)] = pairs.reshape(len(index), columns).astype(np.float32) * np.float32(deviation)
    return values


def tensors(shape):
    """Names and values of all weights under Hugging Face's names; the head is the embedding."""
    hidden, wide = shape["hidden"], shape["intermediate"]
    head = hidden // shape["heads"]
    deviation = hidden**-0.5
    matrices = {
        "self_attn.q_proj": (shape["heads"] * head, hidden),
        "self_attn.k_proj": (shape["kv_heads"] * head, hidden),
        "self_attn.v_proj": (shape["kv_heads"] * head, hidden),
        "self_attn.o_proj": (hidden, shape["heads"] * head),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    yield "model.embed_tokens.weight", matrix("model.embed_tokens.weight", shape["vocab"], hidden, deviation)
    for layer in range(shape["layers"]):
        for part, sizes in matrices.items():
            name = f"model.layers.{layer}.{part}.weight"
            yield name, matrix(name, *sizes, deviation)
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            yield f"model.layers.{layer}.{norm}.weight", np.ones(hidden, np.float32)
    yield "model.norm.weight", np.ones(hidden, np.float32)


def config(shape):
    """Hugging Face's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"], "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["hidden"] // shape["heads"], "vocab_size": shape["vocab"],
        "max_position_embeddings": 8192, "rms_norm_eps": EPS, "rope_theta": shape["theta"], "tie_word_embeddings": True,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
    }


def folder(preset):
    """A Hugging Face folder with the weights of a preset in f32, written at the first call."""
    from safetensors.numpy import save_file

    place = cache("weights") / f"{preset}-seed{WEIGHTS_SEED}"
    if not (place / "model.safetensors").exists():
        draft = place.with_name(f"{place.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        (draft / "config.json").write_text(json.dumps(config(PRESETS[preset]), indent=1))
        save_file(dict(tensors(PRESETS[preset])), draft / "model.safetensors", {"format": "pt"})
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    return place


def random_batch(rows, length, vocab):
    """Inputs and targets, each `rows * length` tokens."""
    state = mix((BATCH_SEED + GOLDEN) & MASK)

    def below():
        nonlocal state
        while True:
            state = (state + GOLDEN) & MASK
            product = mix(state) * vocab
            if product & MASK >= -vocab % (1 << 64) % vocab:
                return product >> 64

    inputs = [below() for _ in range(rows * length)]
    return inputs, [below() for _ in range(rows * length)]


if __name__ == "__main__":
    print(folder(sys.argv[1]))
