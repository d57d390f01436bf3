"""Make the shipped Countdown base model: ``python scripts/countdown_base/make_base.py``.

Pre-trains a small Qwen3 on the traces of ``traces.py`` with the loss on completions alone, and writes a normal
Hugging Face model directory. Seeded; runs on two CPU cores; prints and keeps a log.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizer import build_tokenizer
from torch import Tensor
from traces import POLISH_SHARES, Trace, TraceWriter
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.contexts import load_templates

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "src" / "selfdistill" / "models" / "countdown-base"
LOG = ROOT / "docs" / "countdown_base.log"

WARMUP_STEPS = 60
WEIGHT_DECAY = 0.02
EMBEDDING_SHARE = 0.5
"""AdamW's learning rate for embedding and norms, as a share of Muon's."""
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


def batches(writer: TraceWriter, tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches of similar lengths, each at most ``tokens`` tokens with padding."""
    rng = random.Random(seed)
    while True:
        rows = encode(tokenizer, list(writer.traces(BUCKET_TRACES)))
        rows.sort(key=lambda row: (len(row.ids), rng.random()))
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
    # The template inside tokenizer_config.json, where every reader of such a directory looks for it.
    tokenizer.save_pretrained(out, save_jinja_files=False)
    # safetensors writes for the owner alone; a package's data is for everybody.
    (out / "model.safetensors").chmod(0o644)


def optimizers_for(model: Qwen3ForCausalLM, lr: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the layers, AdamW for embedding and norms, each with its peak learning rate.

    With AdamW alone the same loss takes twice the steps.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=EMBEDDING_SHARE * lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, lr), (adamw, EMBEDDING_SHARE * lr)]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with its own data, fresh optimisers and one cosine."""

    name: str
    steps: int
    lr: float
    source: Iterator[list[Encoded]]


def train(args: argparse.Namespace) -> None:
    """Pre-train, polish and save; one line of log every fifty steps."""
    torch.set_num_threads(args.threads)
    templates = load_templates("countdown")
    tokenizer = build_tokenizer(templates)
    model = build_model(tokenizer, args.seed)
    broad = TraceWriter(templates, args.seed)
    narrow = TraceWriter(templates, args.seed + 1, shares=POLISH_SHARES)
    phases = [
        Phase("broad", args.steps, args.lr, batches(broad, tokenizer, args.tokens, args.seed)),
        Phase("feedback", args.polish_steps, args.polish_lr, batches(narrow, tokenizer, args.tokens, args.seed + 1)),
    ]
    if args.start is not None:
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
        del phases[0]
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("w" if args.start is None else "a", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        parameters = sum(p.numel() for p in model.parameters())
        say(f"torch {torch.__version__}, {parameters} parameters, {len(tokenizer)} words, --tokens {args.tokens}")
        for phase in phases:
            say(f"phase {phase.name}: {phase.steps} steps, learning rate {phase.lr}, seed {args.seed}")
            run_phase(model, phase, tokenizer.pad_token_id, say)
            save(model, tokenizer, args.out)
            say(f"phase {phase.name} saved")


def run_phase(model: Qwen3ForCausalLM, phase: Phase, pad: int, say: Callable[[str], None]) -> None:
    """Train through one phase."""
    optimizers = optimizers_for(model, phase.lr)
    started, loss_sum, token_sum = time.monotonic(), 0.0, 0
    for step in range(phase.steps):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, phase.steps, peak)
        loss, count = completion_loss(model, next(phase.source), pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        loss_sum, token_sum = loss_sum + loss.item() * count, token_sum + count
        if (step + 1) % 50 == 0 or step + 1 == phase.steps:
            seconds = time.monotonic() - started
            say(f"step {step + 1:5d}  loss {loss_sum / token_sum:.4f}  tokens {token_sum}  {seconds:6.0f} s")
            loss_sum, token_sum = 0.0, 0


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--tokens", type=int, default=4500)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--polish-steps", type=int, default=600)
    parser.add_argument("--polish-lr", type=float, default=3e-3)
    parser.add_argument("--start", type=Path, help="a model that went through the first phase: do the second alone")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
