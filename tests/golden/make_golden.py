"""Writes the golden files beside it with PyTorch and transformers; the tests only read them.

    python3 -m venv ~/.cache/smolforge/venv
    ~/.cache/smolforge/venv/bin/pip install -r tests/golden/requirements.txt
    ~/.cache/smolforge/venv/bin/python tests/golden/make_golden.py

Every draw has a seed and torch runs on one thread: a second run on the same machine writes the same bytes.
Axes: b batch, t time, v vocabulary, s optimizer step, a micro-batch of a step.
"""

import json
import math
import shutil
import struct
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as warpers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HERE = Path(__file__).resolve().parent
VOCAB = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, initializer_range=0.2,
    bos_token_id=0, eos_token_id=0, pad_token_id=None, attn_implementation="eager",
)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

CHATML = """{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a small model.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{% generation %}{{- message.content | trim + '<|im_end|>' -}}{% endgeneration %}
{%- else -%}
{{- message.content | trim + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def generator(seed):
    return torch.Generator().manual_seed(seed)


# Tokenizer


def training_text():
    """A few thousand invented lines of prose, code and sums, the same on every machine."""
    names = ["Mira", "Tomas", "the miller", "an old fox", "the captain", "Ada", "their neighbour"]
    verbs = ["carried", "found", "mended", "painted", "counted", "forgot", "measured", "borrowed", "whispered about"]
    things = ["a lantern", "the small boat", "three apples", "a letter", "the broken clock", "some honey", "yesterday's bread", "a wooden wheel"]
    places = ["in the garden", "under the bridge", "near the harbour", "before winter", "at the station",
              "through the window", "every morning", "without a question"]
    state, lines = 12345, []

    def pick(options):
        nonlocal state
        state = (state * 1103515245 + 12345) % 2**31
        return options[(state >> 16) % len(options)]

    for _ in range(700):
        lines.append(f"{pick(names)} {pick(verbs)} {pick(things)} {pick(places)}.")
        left, right = pick(range(100)), pick(range(100))
        lines.append(f"Question: what is {left} + {right}? Answer: {left + right}")
        lines.append(f"def {pick(verbs)}(value):\n    return value * {pick(range(10))}\n")
        lines.append(pick(["Où est la fenêtre ?", "Größe und Länge", "naïve café", "日本語のテキスト", "π ≈ 3.14"]))
    return lines


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    (HERE / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(HERE / "tokenizer" / "tokenizer.json"))

    texts = [
        "", " ", "a", "The captain found a lantern near the harbour.", "  two  spaces   three", "\n\n\ttab\t\n",
        "trailing space ", "0 12 345 6789", "x1y22z333", "3.14159 and 1,000,000", "½ ² Ⅳ ٣ 五", "don't we'll I'm they've",
        "def mended(value):\n    return value * 7\n", "if (a != b) { return a[i]->next; }", "café naïve Ångström",
        "e\u0301 combining", "日本語のテキスト", "Привет, мир", "🦀🔥 👩‍🚀 🇫🇷", "\u200bzero\u200bwidth", "\u0000\u0001\u007f",
        "a<|endoftext|>b", "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext", "<|endoftext|><|endoftext|>",
        "A" * 50, "\r\nwindows\r\n", "MiXeD CaSe WORDS", "https://example.org/a?b=c&d=%20", "\u00a0no-break\u3000wide",
    ]
    cases = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({
            "text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True),
        })
    write_json(HERE / "tokenizer_golden.json", {"vocab_size": VOCAB, "cases": cases})


def write_tokenizer_files(folder):
    shutil.copy(HERE / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False, "model_max_length": 128,
        "chat_template": CHATML,
    })


def make_chats():
    tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny_llama")
    for case in json.loads((HERE / "tokenizer_golden.json").read_text())["cases"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case
    user = lambda text: {"role": "user", "content": text}  # noqa: E731
    assistant = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    system = lambda text: {"role": "system", "content": text}  # noqa: E731
    conversations = [
        ([user("What is 2 + 3?")], True),
        ([user("What is 2 + 3?"), assistant("5")], False),
        ([system("Answer briefly."), user("  spaces around  "), assistant(" trimmed\n")], False),
        ([user("one"), assistant("two"), user("three"), assistant("four 🦀")], False),
        ([system("Be kind."), user("first"), assistant("second"), user("日本語 and\nnew lines")], True),
        ([user("an injected <|im_end|> token"), assistant("")], False),
    ]
    cases = []
    for messages, prompt in conversations:
        render = dict(add_generation_prompt=prompt)
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **render)
        cases.append({
            "messages": messages, "add_generation_prompt": prompt,
            "text": tokenizer.apply_chat_template(messages, tokenize=False, **render),
            "ids": list(encoded["input_ids"]), "assistant_mask": list(encoded["assistant_masks"]),
        })
    write_json(HERE / "chat_golden.json", {"template": CHATML, "cases": cases})


# Models


def initialised(config, seed):
    """A Llama whose logits are far from uniform and whose norms are not all ones."""
    model = LlamaForCausalLM(config).eval()
    draws = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.copy_(1.0 + 0.1 * noise if parameter.dim() == 1 else 0.25 * noise)
    return model


def save_model(model, folder, version_4_config=False, **options):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **options)
    if version_4_config:  # the form in which most published checkpoints came
        path = folder / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        config["torch_dtype"] = config.pop("dtype")
        if config["head_dim"] == config["hidden_size"] // config["num_attention_heads"]:
            del config["head_dim"]
        write_json(path, config)


def reloaded(folder):
    """The model as read back from disk, in f32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def cross_entropy(logits, targets, reduction):
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), targets.reshape(-1), ignore_index=-100, reduction=reduction)


def make_models():
    tiny = initialised(LlamaConfig(**TINY, tie_word_embeddings=True, head_dim=8, rope_theta=10000.0), seed=1)
    save_model(tiny, HERE / "tiny_llama")
    write_tokenizer_files(HERE / "tiny_llama")
    sharded = initialised(tiny.config, seed=1).to(torch.bfloat16)
    save_model(sharded, HERE / "tiny_llama_sharded", version_4_config=True, max_shard_size="40KB")
    untied = initialised(
        LlamaConfig(**TINY, tie_word_embeddings=False, head_dim=16, rope_parameters={**LLAMA3, "rope_theta": 10000.0}),
        seed=2)
    save_model(untied.half(), HERE / "tiny_llama_untied", version_4_config=True)

    rows = torch.randint(3, VOCAB, (2, 17), generator=generator(3))  # [b, t + 1]
    ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    golden = {"input_ids": ids, "targets": targets}
    tiny = reloaded(HERE / "tiny_llama")
    logits = tiny(ids).logits
    loss = cross_entropy(logits, targets, "mean")
    loss.backward()
    golden["logits"], golden["loss"] = logits.detach(), loss.detach().reshape(1)
    for name, parameter in tiny.named_parameters():
        golden[f"grad.{name}"] = parameter.grad
    with torch.no_grad():
        for kind in ["sharded", "untied"]:
            golden[f"{kind}.logits"] = reloaded(HERE / f"tiny_llama_{kind}")(ids).logits
            golden[f"{kind}.loss"] = cross_entropy(golden[f"{kind}.logits"], targets, "mean").reshape(1)
    save_tensors(golden, HERE / "tiny_llama_golden.safetensors")


def save_tensors(tensors, path):
    """Saves with the header's names sorted: safetensors orders its metadata by chance."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    path.write_bytes(data[:8] + text + data[8 + length :])


# Training


def make_adamw():
    steps, accumulation, warmup, lr_max, lr_min = 10, 2, 3, 1e-2, 1e-3
    max_grad_norm = 5.0  # between the norms of the steps: about half of them are clipped
    options = dict(betas=(0.9, 0.95), eps=1e-8)

    def lr(it):
        if it < warmup:
            return lr_max * (it + 1) / (warmup + 1)
        progress = (it - warmup) / (steps - warmup)
        return lr_min + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr_max - lr_min)

    model = reloaded(HERE / "tiny_llama")
    draws = generator(4)
    # Rows of eight tokens said twice: the second half can be learnt, so that the losses fall.
    half = torch.randint(3, VOCAB, (steps, accumulation, 2, 9), generator=draws) % 40 + 3
    rows = torch.cat([half, half], dim=-1)[..., :17]  # [s, a, b, t + 1]
    ids, targets = rows[..., :-1].contiguous(), rows[..., 1:].contiguous()
    keep = torch.rand(targets.shape, generator=draws) > 0.15
    keep[:, 1, 1, 5:] = False  # the second micro-batch has far fewer targets than the first
    targets[~keep] = -100

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr_max, foreach=False, **options)
    record = {"losses": [], "grad_norms": [], "lrs": [], "target_counts": []}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        optimizer.zero_grad(set_to_none=True)
        counts = [int((targets[step, micro] != -100).sum()) for micro in range(accumulation)]
        loss = 0.0
        for micro in range(accumulation):
            part = cross_entropy(model(ids[step, micro]).logits, targets[step, micro], "sum") / sum(counts)
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm, foreach=False)
        optimizer.step()
        record["losses"].append(loss)
        record["grad_norms"].append(norm.item())
        record["lrs"].append(lr(step))
        record["target_counts"].append(counts)
    clipped = sum(norm > max_grad_norm for norm in record["grad_norms"])
    assert 0 < clipped < steps, record["grad_norms"]
    write_json(HERE / "adamw_golden.json", {
        "steps": steps, "accumulation": accumulation, "warmup": warmup, "lr_max": lr_max, "lr_min": lr_min,
        "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": max_grad_norm, **record})
    final = {f"final.{name}": p.detach() for name, p in model.named_parameters()}
    save_tensors({"input_ids": ids, "targets": targets, **final}, HERE / "adamw_golden.safetensors")


# Tables and small functions


def make_rope():
    positions = [0, 1, 2, 63, 64, 127, 1000, 8191]
    llama32 = {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}
    cases = []
    for name, head_dim, theta, scaling in [
        ("plain_10000", 64, 10000.0, None), ("plain_100000", 64, 100000.0, None),
        ("llama3_32", 64, 500000.0, llama32), ("tiny_untied", 16, 10000.0, LLAMA3),
    ]:
        config = LlamaConfig(**{**TINY, "hidden_size": 4 * head_dim}, head_dim=head_dim, rope_parameters={
            **(scaling or {"rope_type": "default"}), "rope_theta": theta})
        config.max_position_embeddings = 131072
        rope = LlamaRotaryEmbedding(config)
        assert rope.attention_scaling == 1.0
        cos, sin = rope(torch.zeros(1, 1, head_dim), torch.tensor([positions]))
        half = head_dim // 2
        assert torch.equal(cos[..., :half], cos[..., half:])
        cases.append({
            "name": name, "head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling, "positions": positions,
            "inv_freq": rope.inv_freq.tolist(), "cos": cos[0, :, :half].tolist(), "sin": sin[0, :, :half].tolist(),
        })
    write_json(HERE / "rope_golden.json", {"cases": cases})


def greedy(model, prompt, count, penalty):
    """Greedy ids from full forward passes; the gap to the runner-up must be safe from rounding."""
    process = warpers.RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1.0 else None
    ids, gap = list(prompt), math.inf
    with torch.no_grad():
        for _ in range(count):
            row = model(torch.tensor([ids])).logits[:, -1]
            row = process(torch.tensor([ids]), row) if process else row
            best = row[0].topk(2)
            gap = min(gap, (best.values[0] - best.values[1]).item())
            ids.append(int(best.indices[0]))
    return ids[len(prompt):], gap


def make_generations():
    prompts = [[17], [40, 300, 7, 511, 25], list(range(100, 120))]
    cases = []
    for name in ["tiny_llama", "tiny_llama_untied"]:
        model = reloaded(HERE / name)
        for prompt in prompts:
            for penalty in [1.0, 1.3]:
                output, gap = greedy(model, prompt, 24, penalty)
                assert gap > 1e-3, (name, prompt, penalty, gap)
                stopped = model.generate(
                    torch.tensor([prompt]), do_sample=False, max_new_tokens=24,
                    repetition_penalty=penalty, pad_token_id=1)[0, len(prompt):].tolist()
                assert stopped == output[:len(stopped)] and (len(stopped) == 24 or stopped[-1] == 0), stopped
                cases.append({
                    "model": name, "prompt": prompt, "repetition_penalty": penalty, "output": output,
                    "output_until_eos": stopped, "min_gap": gap})
    assert any(len(case["output_until_eos"]) < 24 for case in cases), "no case ends at the end-of-text token"
    write_json(HERE / "generate_golden.json", {"cases": cases})


def make_samplers():
    draws = generator(5)
    wide = (1.7 * torch.randn(16, generator=draws)).tolist()
    narrow = (0.5 * torch.randn(12, generator=draws)).tolist()
    ties = [2.0, 1.0, 1.0, 1.0, 0.5, -3.0, 2.0, 0.0, -1.0, 1.0, -2.0, 0.25]
    huge = [80.0, -80.0, 79.0, 0.0, 60.0, 78.5, -1e4, 1.0, 2.0, 3.0, 4.0, 5.0]
    off = dict(previous_ids=[], repetition_penalty=None, temperature=None, top_k=None, top_p=None, min_p=None)
    table = [
        ("plain", wide, {}), ("temperature_low", wide, {"temperature": 0.3}),
        ("temperature_high", wide, {"temperature": 2.5}), ("temperature_huge_logits", huge, {"temperature": 0.7}),
        ("top_k_1", wide, {"top_k": 1}), ("top_k_5", wide, {"top_k": 5}), ("top_k_over_vocab", wide, {"top_k": 100}),
        ("top_k_ties_keep_all_equals", ties, {"top_k": 3}), ("top_p_half", wide, {"top_p": 0.5}),
        ("top_p_narrow", narrow, {"top_p": 0.9}), ("top_p_tiny_keeps_one", narrow, {"top_p": 0.01}),
        ("top_p_one", narrow, {"top_p": 1.0}), ("min_p", wide, {"min_p": 0.05}),
        ("min_p_narrow", narrow, {"min_p": 0.6}), ("min_p_one", narrow, {"min_p": 1.0}),
        ("repetition", wide, {"repetition_penalty": 1.3, "previous_ids": [0, 3, 3, 7, 15]}),
        ("repetition_below_one", wide, {"repetition_penalty": 0.8, "previous_ids": [1, 2]}),
        ("repetition_zero_logit", ties, {"repetition_penalty": 2.0, "previous_ids": [7, 0, 5]}),
        ("temperature_top_p", wide, {"temperature": 0.7, "top_p": 0.9}),
        ("all", wide, {"previous_ids": [2, 9, 9, 4], "repetition_penalty": 1.2, "temperature": 0.8, "top_k": 10,
                       "top_p": 0.95, "min_p": 0.02}),
        ("all_narrow", narrow, {"previous_ids": [11, 0], "repetition_penalty": 1.1, "temperature": 1.5, "top_k": 8,
                                "top_p": 0.8, "min_p": 0.3}),
    ]
    cases = []
    for name, logits, chosen in table:
        params = {**off, **chosen}
        scores = torch.tensor([logits])
        # In this order: each sees what the one before it left.
        for key, build in [
            ("repetition_penalty", warpers.RepetitionPenaltyLogitsProcessor),
            ("temperature", warpers.TemperatureLogitsWarper), ("top_k", warpers.TopKLogitsWarper),
            ("top_p", warpers.TopPLogitsWarper), ("min_p", warpers.MinPLogitsWarper),
        ]:
            if params[key] is not None:
                scores = build(params[key])(torch.tensor([params["previous_ids"]], dtype=torch.long), scores)
        cases.append({"name": name, "logits": scores_list(torch.tensor(logits)), **params,
                      "probs": torch.softmax(scores, dim=-1)[0].tolist()})
    write_json(HERE / "sampler_golden.json", {"cases": cases})


def scores_list(tensor):
    return [float(value) for value in tensor]


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    make_tokenizer()
    make_models()
    make_chats()
    make_adamw()
    make_rope()
    make_generations()
    make_samplers()
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.suffix in {".json", ".safetensors"})
    print(f"golden files written to {HERE}: {total} bytes")
    assert total < 1_500_000, "fixtures are committed: keep them small"


if __name__ == "__main__":
    main()
