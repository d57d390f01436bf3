"""Measure a base model: sample at temperature 1 and score under any context, without the library's samplers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from selfdistill.contexts.templates import apply, load_templates
from selfdistill.models.architecture import cache_argument
from selfdistill.types import Example, Message, Skipped, Task, Verdict

MODELS = Path(__file__).resolve().parents[2] / "src" / "selfdistill" / "models" / "shipped"
MAX_TOKENS = 300
SAMPLE_ROWS = 256
SCORE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion with its example, prompt and verdict."""

    example: Example
    prompt_ids: list[int]
    ids: list[int]
    text: str
    verdict: Verdict


class Subject:
    """A model under measurement, with its task and contexts."""

    def __init__(self, model_dir: Path, task: Task) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.cache_argument = cache_argument(type(self.model))
        self.templates = load_templates(task.contexts)
        self.task = task

    def prompt_ids(self, example: Example, context: str, fields: Mapping[str, str]) -> list[int]:
        """Return the token ids of the prompt under a context."""
        messages = apply(self.templates, context, example.prompt, fields)
        if isinstance(messages, Skipped):
            raise ValueError(messages.reason)
        return self._render(messages)

    def _render(self, messages: Sequence[Message]) -> list[int]:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def sample(
        self, examples: Sequence[Example], fields: Sequence[Mapping[str, str]], context: str, *, seed: int
    ) -> list[Sample]:
        """Return one completion at temperature 1 for every example, in order."""
        prompts = [self.prompt_ids(e, context, f) for e, f in zip(examples, fields, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        completions: list[list[int]] = []
        for start in range(0, len(prompts), SAMPLE_ROWS):
            completions += self._sample(prompts[start : start + SAMPLE_ROWS], generator)
        samples: list[Sample] = []
        for example, prompt, ids in zip(examples, prompts, completions, strict=True):
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            finished = ids[-1] == self.tokenizer.eos_token_id
            samples.append(Sample(example, prompt, ids, text, self.task.verify(example, text, finished=finished)))
        return samples

    @torch.inference_mode()
    def _sample(self, prompts: Sequence[list[int]], generator: torch.Generator) -> list[list[int]]:
        """Sample left-padded prompts; finished rows leave the batch."""
        width = max(map(len, prompts))
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids_BL = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        position_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        completions: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        cache = DynamicCache(config=self.model.config)
        for _ in range(MAX_TOKENS):
            out = self.model(
                ids_BL, attention_mask=mask_BL, position_ids=position_BL, use_cache=True, **{self.cache_argument: cache}
            )
            sampled_B1 = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
            for row, token in zip(rows, sampled_B1[:, 0].tolist(), strict=True):
                completions[row].append(token)
            alive = (sampled_B1[:, 0] != end).nonzero()[:, 0]
            if not len(alive):
                break
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)[alive]
            ids_BL, position_BL = sampled_B1[alive], position_BL[alive, -1:] + 1
            if len(alive) < len(rows):
                cache.batch_select_indices(alive)
                rows = [rows[i] for i in alive.tolist()]
        return completions

    @torch.inference_mode()
    def logprobs(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Iterator[Tensor]:
        """Yield the log-probabilities of the completions' tokens after the prompts, one tensor per completion."""
        for start in range(0, len(prompts), SCORE_ROWS):
            pairs = list(zip(prompts[start : start + SCORE_ROWS], completions[start : start + SCORE_ROWS], strict=True))
            width = max(len(p) + len(c) for p, c in pairs)
            pad = self.tokenizer.pad_token_id
            # Rows are padded on the right, so a causal model needs no mask.
            ids_BL = torch.tensor([p + c + [pad] * (width - len(p) - len(c)) for p, c in pairs])
            logprobs_BLV = self.model(input_ids=ids_BL, use_cache=False).logits.log_softmax(-1)
            for b, (p, c) in enumerate(pairs):
                predicted_TV = logprobs_BLV[b, len(p) - 1 : len(p) + len(c) - 1]
                yield predicted_TV.gather(-1, torch.tensor(c)[:, None])[:, 0]


def share(truths: Sequence[bool]) -> float:
    """Return the share of true values; NaN if there are none, as for feedback on a model without failures."""
    return mean([float(truth) for truth in truths])


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of no values."""
    return sum(values) / len(values) if values else math.nan
