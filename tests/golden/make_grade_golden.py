"""Writes the golden file of the grader's loss with PyTorch and transformers; the tests only read it.

    ~/.cache/smolforge/venv/bin/pip install -r tests/golden/requirements.txt
    ~/.cache/smolforge/venv/bin/python tests/golden/make_grade_golden.py

Run `make_golden.py` first: `tiny_llama/` is the model here. Torch runs on one thread: a second run on the same machine writes
the same bytes. Questions and answers are invented.
"""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_golden import HERE, write_json

CASES = {
    "one": [["How many apples are in 3 boxes?", " <answer>36</answer>"]],
    "two": [["a", ""], ["The captain measured the boat in metres before winter.", " It was 7 m = <answer>700</answer> cm"]],
    "many": [
        ["What is 4 hours in minutes?", " 4 * 60 =<answer>240</answer>"],
        ["How many cm are in 2 m?", "<answer>200</answer>"],
        ["Tell me how many grams there are in 9 kilograms, please.", ""],
        ["5 km in m?", " 1 km = 1000 m. 5 * 1000 = 5000 and so on and so on and so on"],
        ["x", "1"],
        ["Question: what is 12 + 30?", " Answer: 42\n日本語 ½"],
        ["What is 4 hours in minutes?", " 4 * 60 =<answer>240</answer>"],
    ],
}


def load(attention):
    return AutoModelForCausalLM.from_pretrained(HERE / "tiny_llama", dtype=torch.float32, attn_implementation=attention).eval()


def padded(tokenizer, rows):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return tokenizer([question + answer for question, answer in rows], return_tensors="pt", padding=True)


def graded(model, batch):
    """One mean over all shifted positions, those of padding included."""
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.input_ids[:, 1:].reshape(-1))
    mask = batch.attention_mask[:, 1:]
    return ((loss * mask).sum() / mask.sum()).item()


def by_parts(model, batch):
    """The same from rows alone, and from a pad whose attention adds nothing: what an implementation may do."""
    silent = load("sdpa")
    with torch.no_grad():
        for layer in silent.model.layers:
            layer.self_attn.o_proj.weight.zero_()
        total, count = 0.0, 0
        for ids, mask in zip(batch.input_ids, batch.attention_mask):
            real, pads = ids[mask == 1], int((mask == 0).sum())
            alone = model(real[None]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(alone, real[1:], reduction="sum").item() if len(real) > 1 else 0.0
            if pads:
                pad = torch.log_softmax(silent(ids[:1][None]).logits[0, 0], -1)
                total -= (pads - 1) * pad[ids[0]].item() + pad[real[0]].item()
            count += len(ids) - 1
    return total / count


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny_llama")
    default, eager = load(None), load("eager")
    assert default.config._attn_implementation == "sdpa"
    cases = {}
    for name, rows in CASES.items():
        batch = padded(tokenizer, rows)
        lengths = batch.attention_mask.sum(-1)
        loss, other = graded(default, batch), graded(eager, batch)
        assert abs(by_parts(default, batch) / loss - 1) < 1e-6, (name, by_parts(default, batch), loss)
        cases[name] = {
            "rows": [{"question": question, "answer": answer, "ids": ids[mask == 1].tolist()}
                     for (question, answer), ids, mask in zip(rows, batch.input_ids, batch.attention_mask)],
            "pads": (lengths.max() - lengths).tolist(), "loss": loss, "loss_with_eager_attention": other,
        }
        print(name, cases[name]["pads"], loss, other)
    assert len(set(cases["many"]["pads"])) >= 3
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    write_json(HERE / "grade_golden.json", {"versions": versions, "pad": tokenizer.pad_token_id, "cases": cases})


if __name__ == "__main__":
    main()
