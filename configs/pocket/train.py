"""Trains the pocket decoder and writes its folder: tokenizer, configuration, weights, held-out and calibration text.

    apt-get install bible-kjv bible-kjv-text sword-text-web
    pip install torch tokenizers safetensors numpy
    MALLOC_MMAP_MAX_=0 python configs/pocket/train.py --out /tmp/pocket

Seeded: the same steps, PyTorch and instruction set give the same data and the same initial weights. `--minutes` shortens
the schedule on a slow machine; such a run is not repeatable. Continuous integration does not run this.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import text
from model import CONFIG, Pocket

BEGIN, END, USER, ASSISTANT, SYSTEM = SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SYSTEM_LINES = ["Continue the passage.", "You continue passages of the Bible.", "You are a helpful assistant."]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SEED = 20
TOKENS_PER_STEP = 4096
# Short rows first; then rows of the full length, on weights rounded to int8.
SHORT_ROW, LONG_ROW, LONG_FROM = 256, 1024, 0.7
PEAK_RATE, LAST_RATE, WARM_UP, DECAY = 3e-3, 2e-5, 0.03, 0.1
CHAT_SHARE = 0.15
# Root mean squares of a row beyond which its weights are cut off, from `LONG_FROM` on.
ROW_LIMIT = 3.0
CALIBRATION_TOKENS = 7000


def train_tokenizer(documents):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


class Rows:
    """Rows of token ids: passages that start anywhere or at a chapter, and conversations that continue a passage."""

    def __init__(self, tokenizer, kept):
        encode = lambda part: tokenizer.encode(part, add_special_tokens=False).ids
        self.begin, self.end, self.user, self.assistant, self.system = (tokenizer.token_to_id(s) for s in SPECIAL)
        self.lines = [encode(line) for line in SYSTEM_LINES]
        self.verses = [[encode(part) for part in [c.title, *c.verses]] for c in kept]
        self.newline = encode("\n")
        documents = [[self.begin, *encode(text.document(c)), self.end] for c in kept]
        order = np.random.default_rng(SEED).permutation(len(documents))
        self.stream = np.concatenate([np.array(documents[i]) for i in order])
        self.starts = np.flatnonzero(self.stream == self.begin)
        self.rng = np.random.default_rng(SEED + 1)

    def batch(self, rows, length):
        return torch.from_numpy(np.stack([self._row(length + 1) for _ in range(rows)]).astype(np.int64))

    def _row(self, length):
        if self.rng.random() < CHAT_SHARE:
            row = []
            while len(row) < length:
                row += self._conversation()
            return np.array(row[:length])
        at_start = self.rng.random() < 0.3
        at = self.rng.choice(self.starts) if at_start else self.rng.integers(len(self.stream))
        return np.take(self.stream, np.arange(at, at + length), mode="wrap")

    def _conversation(self):
        chapter = self.verses[self.rng.integers(len(self.verses))]
        at = self.rng.integers(max(1, len(chapter) - 1))
        answer = chapter[at + 1 : at + 2 + self.rng.integers(3)]
        out = [self.begin]
        if self.rng.random() < 0.3:
            out += [self.system, *self.lines[self.rng.integers(len(self.lines))], self.end]
        out += [self.user, *chapter[at], self.end, self.assistant]
        for i, verse in enumerate(answer):
            out += (self.newline if i else []) + verse
        return out + [self.end]


def rate(progress):
    if progress < WARM_UP:
        return PEAK_RATE * (progress + 1e-3) / WARM_UP
    turn = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * turn))


def optimisers_of(model):
    """Muon for the matrices of the layers, AdamW for the embedding and the gains, all with the same rate."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": [model.model.embed_tokens.weight], "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    return [adam, torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")]


def train(model, rows, steps, minutes, use_compile):
    """Tokens seen and minutes taken."""
    optimisers = optimisers_of(model)
    for layer in model.model.layers if use_compile else []:
        layer.compile(dynamic=False)
    begun, step, progress, mean = time.time(), 0, 0.0, None
    while progress < 1:
        long = progress >= LONG_FROM
        length = LONG_ROW if long else SHORT_ROW
        ids = rows.batch(TOKENS_PER_STEP // length, length)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1], long)
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate(progress)
            optimiser.step()
        model.zero_grad(set_to_none=True)
        if long:
            model.clip_rows(ROW_LIMIT)
        step += 1
        progress = max(step / steps, (time.time() - begun) / (60 * minutes))
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step} progress {progress:.3f} loss {mean:.3f} minutes {(time.time() - begun) / 60:.1f}", flush=True)
    return step * TOKENS_PER_STEP, (time.time() - begun) / 60


@torch.no_grad()
def measure(model, ids, length=512):
    """Perplexity in windows of `length` tokens, each opened by the first token, on float and on int8-rounded weights, and
    the share of positions where both put the same token first."""
    windows = [[0, *ids[i : i + length - 1]] for i in range(0, len(ids) - length + 2, length - 1)]
    loss, loss8, same, count = 0.0, 0.0, 0, 0
    for window in windows:
        row = torch.tensor([window])
        float_, int8 = model(row)[0, :-1], model(row, True)[0, :-1]
        loss += F.cross_entropy(float_, row[0, 1:], reduction="sum").item()
        loss8 += F.cross_entropy(int8, row[0, 1:], reduction="sum").item()
        same += (float_.argmax(-1) == int8.argmax(-1)).sum().item()
        count += len(window) - 1
    return {
        "tokens": count,
        "loss": loss / count,
        "perplexity": math.exp(loss / count),
        "perplexity on int8 weights": math.exp(loss8 / count),
        "top-1 agreement": same / count,
    }


def write_folder(out, tokenizer, model, held, calibration):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    weights = {name: value.detach().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    token_settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": SPECIAL[2:],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "do_sample": False, "max_new_tokens": 128}
    for name, value in (("config", CONFIG), ("tokenizer_config", token_settings), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (out / "eval.txt").write_text("\n".join(held), encoding="utf-8")
    (out / "calibration.txt").write_text("\n".join(calibration), encoding="utf-8")


def calibration_text(tokenizer, kept):
    """Chapters from all over the book that the model was trained on."""
    chosen, tokens = [], 0
    for chapter in kept[11::173]:
        size = len(tokenizer.encode(text.document(chapter)).ids)
        if tokens + size <= CALIBRATION_TOKENS:
            chosen.append(text.document(chapter))
            tokens += size
    return chosen


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True, help="folder to write")
    args.add_argument("--steps", type=int, default=4500, help=f"of {TOKENS_PER_STEP} tokens")
    args.add_argument("--minutes", type=float, default=1e9, help="the schedule ends by then at the latest")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--plain", action="store_true", help="without torch.compile (needs no C++ compiler, half as fast)")
    args = args.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    web, kjv = text.chapters()
    kept = [c for c in web + kjv if not text.held_out(c)]
    held = [text.document(c) for c in web if text.held_out(c)]
    tokenizer = train_tokenizer(text.document(c) for c in kept)
    rows, model = Rows(tokenizer, kept), Pocket()
    print(f"{len(rows.stream)} tokens of text, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    tokens, minutes = train(model, rows, args.steps, args.minutes, not args.plain)
    for value in model.parameters():
        value.data = value.data.to(torch.float16).to(torch.float32)
    calibration = calibration_text(tokenizer, [c for c in web if not text.held_out(c)])
    write_folder(args.out, tokenizer, model, held, calibration)
    print(f"{tokens} tokens in {minutes:.1f} minutes")
    for name, part in (("eval.txt", held), ("calibration.txt", calibration)):
        ids = tokenizer.encode("\n".join(part), add_special_tokens=False).ids
        print(name, len(ids), "tokens:", json.dumps(measure(model, ids)), flush=True)


if __name__ == "__main__":
    main()
