"""Writes the golden files of fine-tuning with bitsandbytes, peft, PyTorch and transformers; the tests only read them.

    ~/.cache/smolforge/venv/bin/pip install -r tests/golden/requirements.txt
    ~/.cache/smolforge/venv/bin/python tests/golden/make_finetune_golden.py

Run `make_golden.py` first: `tiny_llama/` is the base of everything here. Every draw has a seed and torch runs on one
thread: a second run on the same machine writes the same bytes.
Axes: b batch, t time, v vocabulary, s optimizer step, a micro-batch of a step.
"""

import json
import math
import shutil

import torch
import transformers
from bitsandbytes import functional as bnb
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.optim import AdamW8bit
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from make_golden import HERE, VOCAB, cross_entropy, generator, reloaded, save_tensors, write_json

BASE, BASE_NF4 = HERE / "tiny_llama", HERE / "tiny_llama_nf4"


# The AVX-512 kernel of bitsandbytes 0.50.2 takes the scales of wrong blocks where rows are a multiple of 16 but not of
# 64 numbers long, as those of tiny_llama are (published models have multiples of 64). Its other kernels, and those for
# CUDA, count blocks through the matrix; so does the one for devices without a kernel of their own, which serves here.
KERNELS = torch.library.Library("bitsandbytes", "IMPL")


def dequantize_4bit(codes, absmax, blocksize, quant_type, shape, dtype):
    code = bnb.get_4bit_type(quant_type, device="cpu")
    return _dequantize_4bit_compute.__wrapped__(codes.reshape(-1), absmax, code, blocksize, shape, dtype)


KERNELS.impl("dequantize_4bit", dequantize_4bit, "CPU", allow_override=True)


def multiplied(count):
    """Numbers that the tests can make, too: exact in f32, in [0, 1)."""
    index = torch.arange(count, dtype=torch.int64)
    return ((index * 2654435761 % 2**32) >> 8).to(torch.float32) / 2**24


def bits(value):
    """An f32 whose decimal form would do, as its bits: nobody has to wonder."""
    return torch.tensor(value, dtype=torch.float32).view(torch.int32).item() & 0xFFFFFFFF


# NF4


def nf4_values():
    """Name → matrix. Blocks are 64 values along the rows, wherever rows end."""
    draws = generator(11)

    def normal(*shape):
        return torch.randn(shape, generator=draws)

    code = bnb.get_4bit_type("nf4", device="cpu")
    middles = (code[:-1] + code[1:]) / 2
    up, down = torch.nextafter(middles, torch.tensor(2.0)), torch.nextafter(middles, torch.tensor(-2.0))
    # One block each: every border of a code, and its neighbours, under scales 1, 3 and 1/7.
    borders = torch.cat([torch.ones(1), middles, up, down, -code[:15], torch.zeros(3)])
    assert borders.shape == (64,) and borders.abs().max() == 1
    zeros = normal(5, 64)
    zeros[1], zeros[3, :32] = 0.0, -0.0
    sizes = torch.tensor([1e-44, 1e-40, 1e-38, 3e-38, 1e-30, 1e-10, 1e10, 1e30, 3e38])
    extreme = (torch.rand((9, 64), generator=draws) * 2 - 1) * sizes[:, None]
    ends_tiny = torch.cat([normal(64), normal(20) * 1e-39]).reshape(2, 42)
    return {
        "one": normal(1, 1), "two": normal(1, 2), "row_63": normal(1, 63), "row_64": normal(1, 64), "row_65": normal(1, 65),
        "odd": normal(3, 43), "thousand": normal(5, 200), "square": normal(32, 32), "zeros": zeros,
        "all_zero": torch.zeros(3, 30), "borders": torch.stack([borders, borders * 3, borders / 7]),
        "borders_end": (borders[:16] * 7)[None],  # an incomplete block is scaled by another operation
        "extreme": extreme, "ends_tiny": ends_tiny,
        "f16": (normal(17, 30) * 0.1).half(), "f16_subnormal": (normal(2, 64) * 1e-6).half(),
        "bf16": (normal(66, 66) * 0.05).bfloat16(), "bf16_odd": normal(33, 31).bfloat16(),
    }


def quantized(values):
    """What bitsandbytes makes of a matrix, plain and with double quantisation."""
    codes, plain = bnb.quantize_4bit(values, quant_type="nf4")
    same, nested = bnb.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    assert torch.equal(codes, same) and nested.blocksize == 64 and nested.state2.blocksize == 256
    return codes, plain, nested


def make_nf4():
    tensors, offsets = {}, {}
    for name, values in nf4_values().items():
        codes, plain, nested = quantized(values)
        tensors |= {
            f"{name}.values": values, f"{name}.codes": codes.reshape(-1), f"{name}.absmax": plain.absmax,
            f"{name}.absmax8": nested.absmax, f"{name}.nested_absmax": nested.state2.absmax,
            f"{name}.dequantized_plain": bnb.dequantize_4bit(codes, plain),
            f"{name}.dequantized": bnb.dequantize_4bit(codes, nested),
        }
        offsets[name] = bits(nested.offset.item())
    # More blocks than the mean takes in one go; the values are a formula, and only codes are kept.
    u = multiplied(257 * 200) - 0.5
    codes, _, nested = quantized((u * u * u).reshape(257, 200))
    tensors |= {"formula.codes": codes.reshape(-1), "formula.absmax8": nested.absmax,
                "formula.nested_absmax": nested.state2.absmax}
    offsets["formula"] = bits(nested.offset.item())
    tensors["quant_map"] = bnb.get_4bit_type("nf4", device="cpu")

    for name, signed in [("signed", True), ("unsigned", False)]:
        code = bnb.create_dynamic_map(signed=signed)
        draws = generator(12)
        tensors[f"{name}.map"] = code.clone()
        values = 10.0 ** (torch.rand(1000, generator=draws) * 9 - 9)
        values[256:512] = 0.0
        values[512:767] = ((code[:-1] + code[1:]) / 2)
        values[767] = 1.0
        values[768:] *= 1e-37
        values[torch.rand(1000, generator=draws) < 0.05] = 0.0
        if signed:
            values[torch.rand(1000, generator=draws) < 0.5] *= -1
        codes, state = bnb.quantize_blockwise(values, code=code, blocksize=256)
        assert torch.equal(code, tensors[f"{name}.map"])
        tensors |= {f"{name}.values": values, f"{name}.codes": codes, f"{name}.absmax": state.absmax,
                    f"{name}.dequantized": bnb.dequantize_blockwise(codes, state)}

    save_tensors(tensors, HERE / "nf4_golden.safetensors")
    write_json(HERE / "nf4_golden.json", {"offset_bits": offsets})


# A checkpoint of bitsandbytes


def make_checkpoint():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        BASE, quantization_config=config, dtype=torch.float32, attn_implementation="eager", device_map="cpu").eval()
    shutil.rmtree(BASE_NF4, ignore_errors=True)
    model.save_pretrained(BASE_NF4)
    resave(BASE_NF4 / "model.safetensors")
    with torch.no_grad():
        logits = reloaded_nf4()(prompt()).logits
        assert torch.equal(logits, model(prompt()).logits)
        dense = reloaded(BASE)
        assert (logits - dense(prompt()).logits).abs().max() > 0.1, "4 bits make a difference"
        for name, module in dense.named_modules():
            if name.endswith("_proj"):
                module.weight.copy_(bnb.dequantize_4bit(*quantized(module.weight)[::2]))
        assert torch.allclose(logits, dense(prompt()).logits, atol=1e-5), "and nothing else does"
    # Scales in f32: the same matrices without double quantisation, of one layer.
    plain = {}
    for name, values in load_file(BASE / "model.safetensors").items():
        if "layers.0" in name and values.dim() == 2:
            codes, state = bnb.quantize_4bit(values, quant_type="nf4")
            plain[name] = codes
            plain |= {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
            plain[f"dequantized.{name}"] = bnb.dequantize_4bit(codes, state)
    plain = {name: value for name, value in plain.items() if "self_attn.k_proj" in name or "mlp.down_proj" in name}
    save_tensors({"input_ids": prompt(), "logits": logits, **plain}, HERE / "tiny_llama_nf4_golden.safetensors")


def resave(path):
    """The same tensors with names in order: safetensors orders them by chance."""
    save_tensors(load_file(path), path)


def reloaded_nf4():
    return AutoModelForCausalLM.from_pretrained(
        BASE_NF4, dtype=torch.float32, attn_implementation="eager", device_map="cpu").eval()


def prompt():
    return torch.randint(3, VOCAB, (2, 4), generator=generator(14))  # [b, t]


# LoRA

TRAINING = dict(steps=10, accumulation=2, warmup=3, lr_max=1e-2, lr_min=1e-3, beta1=0.9, beta2=0.95, eps=1e-8,
                weight_decay=0.1)
# Between the norms of the steps: some of them are clipped.
MAX_GRAD_NORM = {"attention": 2.15, "all_linear_rslora": 4.5, "nf4_all_linear": 2.7}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def lr(it):
    warmup, steps, lr_max, lr_min = (TRAINING[key] for key in ["warmup", "steps", "lr_max", "lr_min"])
    if it < warmup:
        return lr_max * (it + 1) / (warmup + 1)
    progress = (it - warmup) / (steps - warmup)
    return lr_min + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr_max - lr_min)


def training_rows():
    steps, accumulation = TRAINING["steps"], TRAINING["accumulation"]
    draws = generator(15)
    half = torch.randint(3, VOCAB, (steps, accumulation, 2, 9), generator=draws) % 40 + 3
    rows = torch.cat([half, half], dim=-1)[..., :17]  # [s, a, b, t + 1]
    ids, targets = rows[..., :-1].contiguous(), rows[..., 1:].contiguous()
    targets[torch.rand(targets.shape, generator=draws) < 0.15] = -100
    targets[:, 1, 1, 5:] = -100  # the second micro-batch has far fewer targets than the first
    return ids, targets


def adapted(base, seed, **config):
    """A model with an adapter all of whose gradients are alive: B is not zero."""
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", **config))
    draws = generator(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            assert parameter.requires_grad == ("lora_" in name), name
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model.eval()


def adapter_tensors(model):
    return {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}


def train(model, ids, targets, max_grad_norm):
    """Ten updates of the adapter; a micro-batch counts by its targets."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=TRAINING["lr_max"], betas=(TRAINING["beta1"], TRAINING["beta2"]), eps=TRAINING["eps"],
        weight_decay=TRAINING["weight_decay"], foreach=False)
    record = {"losses": [], "grad_norms": []}
    with torch.no_grad():
        before = cross_entropy(model(ids[0, 0]).logits, targets[0, 0], "mean").item()
    for step in range(TRAINING["steps"]):
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad(set_to_none=True)
        count, loss = int((targets[step] != -100).sum()), 0.0
        for micro in range(TRAINING["accumulation"]):
            part = cross_entropy(model(ids[step, micro]).logits, targets[step, micro], "sum") / count
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=False)
        optimizer.step()
        record["losses"].append(loss)
        record["grad_norms"].append(norm.item())
    clipped = sum(norm > max_grad_norm for norm in record["grad_norms"])
    assert 2 < clipped < TRAINING["steps"] - 2, record["grad_norms"]
    with torch.no_grad():
        left = cross_entropy(model(ids[0, 0]).logits, targets[0, 0], "mean").item()
    assert left < before, (left, before)
    return record


def make_lora():
    ids, targets = training_rows()
    tensors = {"input_ids": ids, "targets": targets, "prompt": prompt()}
    counts = (targets != -100).sum(dim=(-1, -2)).tolist()
    golden = {**TRAINING, "lrs": [lr(step) for step in range(TRAINING["steps"])], "target_counts": counts, "cases": {}}
    for name, base, seed, max_grad_norm, config in [
        ("attention", lambda: reloaded(BASE), 16, MAX_GRAD_NORM["attention"], {"target_modules": ATTENTION}),
        ("all_linear_rslora", lambda: reloaded(BASE), 17, MAX_GRAD_NORM["all_linear_rslora"],
         {"target_modules": "all-linear", "use_rslora": True}),
        ("nf4_all_linear", reloaded_nf4, 18, MAX_GRAD_NORM["nf4_all_linear"], {"target_modules": "all-linear"}),
    ]:
        model = adapted(base(), seed, **config)
        initial = adapter_tensors(model)
        if name == "attention":
            save_adapter(model, HERE / "tiny_llama_lora")
        with torch.no_grad():
            tensors[f"{name}.logits"] = model(prompt()).logits
        record = train(model, ids, targets, max_grad_norm)
        final = adapter_tensors(model)
        assert all((final[key] - initial[key]).abs().min() > 0 for key in initial), "every number moves"
        tensors |= {f"{name}.initial.{key}": value for key, value in initial.items()}
        tensors |= {f"{name}.final.{key}": value for key, value in final.items()}
        lora = model.peft_config["default"]
        golden["cases"][name] = {
            "r": lora.r, "lora_alpha": lora.lora_alpha, "use_rslora": lora.use_rslora,
            "target_modules": sorted(lora.target_modules), "base": "tiny_llama_nf4" if "nf4" in name else "tiny_llama",
            "max_grad_norm": max_grad_norm, **record}
    save_tensors(tensors, HERE / "lora_golden.safetensors")
    write_json(HERE / "lora_golden.json", golden)


def save_adapter(model, folder):
    """As peft saves it, less the model card, the machine's paths and the order of sets."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    resave(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny_llama"
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", config)


# AdamW in 8 bits


def make_adamw8():
    count, saved = 4196, [1, 2, 10]  # 16 blocks of 256 and a part of one
    spread = (multiplied(11 * count) - 0.5).reshape(11, count)
    parameter = torch.nn.Parameter(spread[0].clone())
    settings = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = AdamW8bit([parameter], **settings)
    tensors = {}
    for step in range(1, 11):
        # Numbers of very different sizes; blocks 3 and 4 have no gradient at first.
        grad = spread[step] ** 2 * spread[step]
        if step <= 2:
            grad[3 * 256 : 5 * 256] = 0.0
        parameter.grad = grad.clone()
        optimizer.step()
        if step in saved:
            state = optimizer.state[parameter]
            assert state["state1"].dtype == torch.uint8 and state["step"] == step
            tensors |= {f"{step}.param": parameter.detach().clone(), f"{step}.m": state["state1"].clone(),
                        f"{step}.v": state["state2"].clone(), f"{step}.m_absmax": state["absmax1"].clone(),
                        f"{step}.v_absmax": state["absmax2"].clone()}
    small = torch.nn.Parameter(torch.ones(4095))
    small.grad = torch.ones(4095)
    optimizer = AdamW8bit([small], **settings)
    optimizer.step()
    assert optimizer.state[small]["state1"].dtype == torch.float32, "fewer than 4096 numbers stay in 32 bits"
    save_tensors(tensors, HERE / "adamw8_golden.safetensors")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    make_nf4()
    make_checkpoint()
    make_lora()
    make_adamw8()
    written = [path for pattern in ["nf4_golden.*", "lora_golden.*", "adamw8_golden.*", "tiny_llama_nf4*", "tiny_llama_lora"]
               for path in HERE.glob(pattern)]
    files = [file for path in written for file in (path.rglob("*") if path.is_dir() else [path])]
    total = sum(file.stat().st_size for file in files)
    print(f"golden files written to {HERE}: {total} bytes")
    assert total < 600_000, "fixtures are committed: keep them small"


if __name__ == "__main__":
    main()
