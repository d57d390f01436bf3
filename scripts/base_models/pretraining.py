"""Pre-training of the small models of the embedded environments.

A small Qwen3 learns the traces of an environment's writer, with the loss on completions only. The result is a normal
Hugging Face model directory. Training is seeded and uses two CPU cores.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from base_models.trace import Trace, Writer

WARMUP_STEPS = 60
WEIGHT_DECAY = 0.02
EMBEDDING_SHARE = 0.5
"""AdamW's learning rate for embedding and norms, as a share of Muon's."""
# Sorting this many traces by length before cutting them into batches leaves almost no padding.
BUCKET_TRACES = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompts and completions in turn, and where each completion starts and ends."""

    ids: list[int]
    learned: tuple[tuple[int, int], ...]


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 with four layers of width 192: 1.8 million parameters, 7.3 MB in float32."""
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
    """Encode prompts through the chat template, and completions unchanged with the end token."""
    turns = [
        (messages, completion, trace.thinking)
        for trace in traces
        for messages, completion in ((trace.messages, trace.completion), *trace.further)
    ]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for messages, _, thinking in turns
    ]
    prompt_ids = iter(tokenizer(prompts, add_special_tokens=False)["input_ids"])
    completions = [f"{completion} <|end|>" for _, completion, _ in turns]
    completion_ids = iter(tokenizer(completions, add_special_tokens=False)["input_ids"])
    rows = []
    for trace in traces:
        ids: list[int] = []
        learned = []
        for _ in range(1 + len(trace.further)):
            ids += next(prompt_ids)
            learned.append((len(ids), len(ids) + len(completion := next(completion_ids))))
            ids += completion
        rows.append(Encoded(ids, tuple(learned)))
    return rows


def batches(writer: Writer, tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int) -> Iterator[list[Encoded]]:
    """Yield endless batches of similar lengths, each of at most ``tokens`` tokens with padding."""
    rng = random.Random(seed)
    while True:
        rows = encode(tokenizer, list(writer.traces(BUCKET_TRACES)))
        rows.sort(key=lambda row: (len(row.ids), rng.random()))
        cut: list[list[Encoded]] = [[]]
        for row in rows:
            if (len(cut[-1]) + 1) * len(row.ids) > tokens:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        yield from cut


def completion_loss(model: Qwen3ForCausalLM, rows: Sequence[Encoded], pad: int) -> tuple[Tensor, int]:
    """Return the mean negative log-likelihood of the completions' tokens, and their number.

    Rows are padded on the right, so a causal model needs no attention mask.
    """
    length = max(len(row.ids) for row in rows)
    ids_BL = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    is_completion_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    for b, row in enumerate(rows):
        for start, end in row.learned:
            is_completion_BL[b, start:end] = True
    hidden_BLD = model.model(input_ids=ids_BL[:, :-1]).last_hidden_state
    is_completion_BL = is_completion_BL[:, 1:]
    logits_NV = model.lm_head(hidden_BLD[is_completion_BL])
    return F.cross_entropy(logits_NV, ids_BL[:, 1:][is_completion_BL]), int(is_completion_BL.sum())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine to a hundredth of the peak."""
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
    # Keep the template inside tokenizer_config.json, which every reader of such a directory supports.
    tokenizer.save_pretrained(out, save_jinja_files=False)
    # safetensors writes with permissions for the owner only; a package's data must be readable by everyone.
    (out / "model.safetensors").chmod(0o644)


def optimizers_for(model: Qwen3ForCausalLM, lr: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return Muon for the layers' matrices and AdamW for embedding and norms, each with its peak learning rate.

    AdamW alone needs twice the steps for the same loss.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=EMBEDDING_SHARE * lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, lr), (adamw, EMBEDDING_SHARE * lr)]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of training with its own data, fresh optimisers and one cosine."""

    name: str
    steps: int
    tokens: int
    lr: float
    source: Iterator[list[Encoded]]


def run_phase(model: Qwen3ForCausalLM, phase: Phase, pad: int, log: Callable[[str], None]) -> None:
    """Train the model for one phase."""
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
            log(f"step {step + 1:5d}  loss {loss_sum / token_sum:.4f}  tokens {token_sum}  {seconds:6.0f} s")
            loss_sum, token_sum = 0.0, 0
