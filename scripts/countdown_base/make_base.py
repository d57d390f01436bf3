"""Make the shipped Countdown base model: ``python scripts/countdown_base/make_base.py``.

Pre-trains a small Qwen3 on the traces of ``traces.py`` with the loss on completions alone, and writes a normal
Hugging Face model directory. Seeded; runs on two CPU cores; prints and keeps a log.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from countdown_base.tokenizer import build_tokenizer
from countdown_base.traces import Trace, TraceWriter

from selfdistill.contexts import load_templates

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "src" / "selfdistill" / "models" / "countdown-base"
LOG = ROOT / "docs" / "countdown_base.log"

WARMUP_STEPS = 60
WEIGHT_DECAY = 0.05
# Sorting this many traces by length before cutting them into batches leaves almost no padding.
BUCKET_TRACES = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prompt and its completion, and where the completion begins."""

    ids: list[int]
    start: int


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Four layers of width 192: 1.8 million parameters, 7.3 MB in float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, traces: Sequence[Trace]) -> list[Encoded]:
    """Prompts through the chat template, completions as they are, with the end token."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in trace.messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=trace.thinking,
        )
        for trace in traces
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    completion_ids = tokenizer([f"{t.completion} <|end|>" for t in traces], add_special_tokens=False)["input_ids"]
    return [Encoded(p + c, len(p)) for p, c in zip(prompt_ids, completion_ids, strict=True)]


def batches(
    writer: TraceWriter, tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int
) -> Iterator[list[Encoded]]:
    """Endless batches of similar lengths, each at most ``tokens`` tokens with padding."""
    rng = random.Random(seed)
    while True:
        rows = sorted(encode(tokenizer, list(writer.traces(BUCKET_TRACES))), key=lambda row: (len(row.ids), rng.random()))
        found: list[list[Encoded]] = [[]]
        for row in rows:
            if (len(found[-1]) + 1) * len(row.ids) > tokens:
                found.append([])
            found[-1].append(row)
        rng.shuffle(found)
        yield from found


def completion_loss(model: Qwen3ForCausalLM, rows: Sequence[Encoded], pad: int) -> tuple[Tensor, int]:
    """Mean negative log-likelihood of the completions' tokens, and their number.

    Rows are padded on the right, where a causal model needs no attention mask.
    """
    length = max(len(row.ids) for row in rows)
    ids_BL = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    wanted_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    for b, row in enumerate(rows):
        wanted_BL[b, row.start : len(row.ids)] = True
    hidden_BLD = model.model(input_ids=ids_BL[:, :-1]).last_hidden_state
    wanted_BL = wanted_BL[:, 1:]
    logits_NV = model.lm_head(hidden_BLD[wanted_BL])
    return F.cross_entropy(logits_NV, ids_BL[:, 1:][wanted_BL]), int(wanted_BL.sum())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine to a hundredth of the peak."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model directory."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def optimizer_for(model: Qwen3ForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)


def train(args: argparse.Namespace) -> None:
    """Pre-train and save; one line of log every fifty steps."""
    torch.set_num_threads(args.threads)
    templates = load_templates("countdown")
    tokenizer = build_tokenizer(templates)
    model = build_model(tokenizer, args.seed)
    optimizer = optimizer_for(model)
    source = batches(TraceWriter(templates, args.seed), tokenizer, args.tokens, args.seed)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("w", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        say(f"make_base.py --steps {args.steps} --tokens {args.tokens} --lr {args.lr} --seed {args.seed} --threads {args.threads}")
        say(f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens")
        started, loss_sum, token_sum = time.monotonic(), 0.0, 0
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            loss, count = completion_loss(model, next(source), tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum, token_sum = loss_sum + loss.item() * count, token_sum + count
            if (step + 1) % 50 == 0 or step + 1 == args.steps:
                seconds = time.monotonic() - started
                say(f"step {step + 1:5d}  loss {loss_sum / token_sum:.4f}  completion tokens a step {token_sum // 50}  {seconds:6.0f} s")
                loss_sum, token_sum = 0.0, 0
            if step + 1 in (args.save_at, args.steps):
                save(model, tokenizer, args.out)
                say(f"step {step + 1:5d}  saved")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-at", type=int, default=0, help="also save after so many steps, for a first look")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
