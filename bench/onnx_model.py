"""Writes the model of weights.py as ONNX in f32, in the layout that transformers.js loads: config.json and onnx/model.onnx.

The graph is the one that the published web models have: ONNX Runtime's fused attention with grouped heads, rotary turns and a
growing cache, and its fused norms. `python bench/onnx_model.py PRESET` writes it and prints the folder.
"""

import json
import os
import shutil
import sys

import numpy as np
import weights
from onnx import TensorProto, helper, numpy_helper, save_model
from presets import EPS, PRESETS

POSITIONS = 2048
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class Graph:
    """Nodes and constants in the making; values go by their names."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def op(self, kind, inputs, outputs, **attributes):
        """A node of ONNX, or of Microsoft's operators where `kind` says so; gives its first output back."""
        domain, _, kind = kind.rpartition(":")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]


def lengths(graph):
    """What the attention wants to know: the last position of every row, and the columns of the mask."""
    graph.op("ReduceSum", ["attention_mask", graph.constant("axis", np.array([1], np.int64))], "ones", keepdims=0)
    graph.op("Sub", ["ones", graph.constant("one", np.array(1, np.int64))], "last")
    graph.op("Cast", ["last"], "seqlens_k", to=INT32)
    graph.op("Shape", ["attention_mask"], "mask_shape")
    graph.op("Gather", ["mask_shape", graph.constant("column", np.array(1, np.int64))], "total", axis=0)
    graph.op("Cast", ["total"], "total_length", to=INT32)


def rotary(graph, shape):
    """Tables of the turns: [positions, head / 2]."""
    half = shape["hidden"] // shape["heads"] // 2
    angles = np.arange(POSITIONS)[:, None] * shape["theta"] ** (-np.arange(half) / half)
    graph.constant("cos", np.cos(angles).astype(np.float32))
    graph.constant("sin", np.sin(angles).astype(np.float32))


def linear(graph, name, x, tensors):
    """x·Wᵀ with the weight of this name, which lies as [in, out] here."""
    return graph.op("MatMul", [x, graph.constant(f"{name}.weight", tensors[f"{name}.weight"].T)], name)


def block(graph, layer, x, normed, tensors, shape):
    """One layer; `x` and `normed` are the residual stream and its norm. Gives both for what follows."""
    at, out = f"model.layers.{layer}", f"layer{layer}"
    q, k, v = (linear(graph, f"{at}.self_attn.{part}_proj", normed, tensors) for part in "qkv")
    past, present = ([f"{when}.{layer}.{part}" for part in ["key", "value"]] for when in ["past_key_values", "present"])
    attended = graph.op("com.microsoft:GroupQueryAttention", [q, k, v, *past, "seqlens_k", "total_length", "cos", "sin"],
                        [f"{out}.attention", *present], num_heads=shape["heads"], kv_num_heads=shape["kv_heads"], do_rotary=1,
                        rotary_interleaved=0)
    attended = linear(graph, f"{at}.self_attn.o_proj", attended, tensors)
    normed, x = skip_norm(graph, f"{at}.post_attention_layernorm", x, attended, tensors)
    gate, up = (linear(graph, f"{at}.mlp.{part}_proj", normed, tensors) for part in ["gate", "up"])
    graph.op("Sigmoid", [gate], f"{out}.sigmoid")
    graph.op("Mul", [gate, f"{out}.sigmoid"], f"{out}.silu")
    graph.op("Mul", [f"{out}.silu", up], f"{out}.swiglu")
    down = linear(graph, f"{at}.mlp.down_proj", f"{out}.swiglu", tensors)
    following = "model.norm" if layer + 1 == shape["layers"] else f"model.layers.{layer + 1}.input_layernorm"
    normed, x = skip_norm(graph, following, x, down, tensors)
    return x, normed


def skip_norm(graph, name, x, added, tensors):
    """RMSNorm of the sum of two, and the sum."""
    weight = graph.constant(f"{name}.weight", tensors[f"{name}.weight"])
    outputs = [name, "", "", f"{name}.sum"]
    return graph.op("com.microsoft:SkipSimplifiedLayerNormalization", [x, added, weight], outputs, epsilon=EPS), outputs[3]


def model(shape):
    """The whole graph: tokens, mask and cache to logits and cache."""
    tensors, graph = dict(weights.tensors(shape)), Graph()
    lengths(graph)
    rotary(graph, shape)
    table = tensors["model.embed_tokens.weight"]
    x = graph.op("Gather", [graph.constant("embedding", table), "input_ids"], "embedded", axis=0)
    first = "model.layers.0.input_layernorm"
    weight = graph.constant(f"{first}.weight", tensors[f"{first}.weight"])
    normed = graph.op("SimplifiedLayerNormalization", [x, weight], first, epsilon=EPS, axis=-1, stash_type=1)
    for layer in range(shape["layers"]):
        x, normed = block(graph, layer, x, normed, tensors, shape)
    graph.op("MatMul", [normed, graph.constant("head", table.T)], "logits")

    def cache(when, length):
        sizes = ["batch_size", shape["kv_heads"], length, shape["hidden"] // shape["heads"]]
        return [helper.make_tensor_value_info(f"{when}.{layer}.{part}", FLOAT, sizes)
                for layer in range(shape["layers"]) for part in ["key", "value"]]

    inputs = [helper.make_tensor_value_info("input_ids", INT64, ["batch_size", "sequence_length"]),
              helper.make_tensor_value_info("attention_mask", INT64, ["batch_size", "total_sequence_length"]),
              *cache("past_key_values", "past_sequence_length")]
    logits = helper.make_tensor_value_info("logits", FLOAT, ["batch_size", "sequence_length", shape["vocab"]])
    made = helper.make_graph(graph.nodes, "llama", inputs, [logits, *cache("present", "total_sequence_length")], graph.constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def folder(preset):
    """The folder for transformers.js, written at the first call."""
    place = weights.folder(preset).with_name(f"{preset}-onnx")
    if not (place / "onnx" / "model.onnx").exists():
        draft = place.with_name(f"{place.name}.{os.getpid()}")
        (draft / "onnx").mkdir(parents=True)
        (draft / "config.json").write_text(json.dumps(weights.config(PRESETS[preset]), indent=1))
        save_model(model(PRESETS[preset]), draft / "onnx" / "model.onnx")
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    return place


if __name__ == "__main__":
    print(folder(sys.argv[1]))
