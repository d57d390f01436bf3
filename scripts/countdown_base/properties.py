"""What the Countdown base model can do, measured: ``python scripts/countdown_base/properties.py [MODEL_DIR]``.

Samples at temperature 1 on validation problems, alone and under the contexts of a teacher, and scores the model's own
completions with and without a reference. The tests assert these numbers on the shipped model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reading import CLASSES, SpokenAttempt, attempts_in, token_classes
from torch import Tensor
from traces import DELIBERATION, MOST_ATTEMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from selfdistill.contexts import apply, load_templates
from selfdistill.tasks.countdown import CountdownTask
from selfdistill.tasks.countdown_arithmetic import normal_form, parse
from selfdistill.types import Example, Message, Skipped, Verdict

MODEL_DIR = Path(__file__).resolve().parents[2] / "src" / "selfdistill" / "models" / "countdown-base"
MAX_TOKENS = 300
SAMPLE_ROWS = 256
SCORE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Said:
    """One sampled completion with its example, prompt and verdict."""

    example: Example
    prompt_ids: list[int]
    ids: list[int]
    text: str
    verdict: Verdict

    @property
    def attempts(self) -> list[SpokenAttempt]:
        """The attempts spoken aloud."""
        return attempts_in(self.text, self.example.columns["numbers"])


class Subject:
    """A model under examination, with its task and contexts."""

    def __init__(self, model_dir: Path, difficulty: str) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.templates = load_templates("countdown")
        self.task = CountdownTask(difficulty)

    def prompt_ids(self, example: Example, context: str, fields: Mapping[str, str]) -> list[int]:
        """The prompt that a context shows, as ids."""
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
    ) -> list[Said]:
        """One completion at temperature 1 for every example, in order."""
        prompts = [self.prompt_ids(e, context, f) for e, f in zip(examples, fields, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        completions: list[list[int]] = []
        for start in range(0, len(prompts), SAMPLE_ROWS):
            completions += self._draw(prompts[start : start + SAMPLE_ROWS], generator)
        said: list[Said] = []
        for example, prompt, ids in zip(examples, prompts, completions, strict=True):
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            finished = ids[-1] == self.tokenizer.eos_token_id
            said.append(Said(example, prompt, ids, text, self.task.verify(example, text, finished=finished)))
        return said

    @torch.inference_mode()
    def _draw(self, prompts: Sequence[list[int]], generator: torch.Generator) -> list[list[int]]:
        """Left-padded sampling; finished rows leave the batch."""
        width = max(map(len, prompts))
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids_BL = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        position_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        completions: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        cache = None
        for _ in range(MAX_TOKENS):
            out = self.model(ids_BL, attention_mask=mask_BL, position_ids=position_BL, past_key_values=cache)
            cache = out.past_key_values
            drawn_B1 = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
            for row, token in zip(rows, drawn_B1[:, 0].tolist(), strict=True):
                completions[row].append(token)
            going = (drawn_B1[:, 0] != end).nonzero()[:, 0]
            if not len(going):
                break
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)[going]
            ids_BL, position_BL = drawn_B1[going], position_BL[going, -1:] + 1
            if len(going) < len(rows):
                cache.batch_select_indices(going)
                rows = [rows[i] for i in going.tolist()]
        return completions

    @torch.inference_mode()
    def logprobs(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Iterator[Tensor]:
        """Log-probabilities of the completions' tokens after the prompts, one tensor a completion."""
        for start in range(0, len(prompts), SCORE_ROWS):
            pairs = list(zip(prompts[start : start + SCORE_ROWS], completions[start : start + SCORE_ROWS], strict=True))
            width = max(len(p) + len(c) for p, c in pairs)
            pad = self.tokenizer.pad_token_id
            # Padded on the right, where a causal model needs no mask.
            ids_BL = torch.tensor([p + c + [pad] * (width - len(p) - len(c)) for p, c in pairs])
            logprobs_BLV = self.model(input_ids=ids_BL, use_cache=False).logits.log_softmax(-1)
            for b, (p, c) in enumerate(pairs):
                predicted_TV = logprobs_BLV[b, len(p) - 1 : len(p) + len(c) - 1]
                yield predicted_TV.gather(-1, torch.tensor(c)[:, None])[:, 0]


def share(truths: Sequence[bool]) -> float:
    """The share that is true."""
    return sum(truths) / len(truths)


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def search_properties(said: Sequence[Said]) -> dict[str, float]:
    """How the model searches on its own."""
    attempts = [one.attempts for one in said]
    flat = [attempt for spoken in attempts for attempt in spoken]
    repeated = [
        attempt.expression in [earlier.expression for earlier in spoken[:i]]
        for spoken in attempts
        for i, attempt in enumerate(spoken)
        if i and attempt.expression is not None
    ]
    false_verdicts = [
        (attempt.verdict == "yes") != (attempt.value == one.example.columns["target"])
        for one, spoken in zip(said, attempts, strict=True)
        for attempt in spoken
    ]
    words = [one.text.split() for one in said]
    return {
        "accuracy": share([one.verdict.correct for one in said]),
        "tokens": mean([len(one.ids) for one in said]),
        "longest": max(len(one.ids) for one in said),
        "truncated": share([one.verdict.feedback is not None and "cut before" in one.verdict.feedback for one in said]),
        "attempts": mean([len(spoken) for spoken in attempts]),
        "most_attempts": max(map(len, attempts)),
        "deliberation_tokens": mean([sum(word in DELIBERATION for word in text) for text in words]),
        "slips": share([attempt.slip for attempt in flat]),
        "misused_numbers": share([attempt.expression is None for attempt in flat]),
        "false_verdicts": share(false_verdicts),
        "repeated_attempts": share(repeated),
    }


def by_attempt(said: Sequence[Said]) -> list[tuple[int, float]]:
    """For k = 1, 2, …: how many completions reached attempt k, and the share of them that were right on it."""
    table: list[tuple[int, float]] = []
    for k in range(1, MOST_ATTEMPTS + 1):
        reached = [one for one in said if len(one.attempts) >= k]
        if not reached:
            break
        right = [one for one in reached if one.verdict.correct and len(one.attempts) == k]
        table.append((len(reached), len(right) / len(reached)))
    return table


def context_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Accuracy under each context with a reference, and how often a lone reference is followed."""
    found: dict[str, float] = {}
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        fields = [reference_fields(example) for example in examples]
        said = subject.sample(examples, fields, context, seed=seed)
        found[f"accuracy_{context}"] = share([one.verdict.correct for one in said])
        found[f"follows_{context}"] = share(
            [one.verdict.answer == normal_form(parse(one.example.fields["solution"])) for one in said]
        )
        found[f"deliberation_{context}"] = mean(
            [float(sum(word in DELIBERATION for word in one.text.split())) for one in said]
        )
    return found


def reference_fields(example: Example) -> dict[str, str]:
    """The fields of a context for an example outside a group, its reference standing in for a sibling."""
    return {
        "solution": example.fields["solution"],
        "sibling": f"answer {example.fields['solution']}",
        "verdict": "wrong",
    }


def feedback_properties(subject: Subject, said: Sequence[Said], *, seed: int) -> dict[str, float]:
    """How often an attempt comes again when feedback has named it, and how often without feedback.

    The attempts are the wrong answers that the model itself gave; both arms are fresh samples on the same problems.
    """
    failed = [one for one in said if one.verdict.feedback is not None and one.verdict.answer is not None]
    examples = [one.example for one in failed]
    fields = [{"feedback": one.verdict.feedback or ""} for one in failed]
    shown = subject.sample(examples, fields, "feedback", seed=seed)
    plain = subject.sample(examples, [{} for _ in failed], "student", seed=seed + 1)
    found: dict[str, float] = {"feedback_cases": len(failed)}
    for name, again in (("with", shown), ("without", plain)):
        found[f"repeats_{name}_feedback"] = share([_says(a, one) for a, one in zip(again, failed, strict=True)])
        found[f"answers_again_{name}_feedback"] = share(
            [a.verdict.answer == one.verdict.answer for a, one in zip(again, failed, strict=True)]
        )
        found[f"accuracy_{name}_feedback"] = share([a.verdict.correct for a in again])
    return found


def _says(again: Said, failed: Said) -> bool:
    """Whether a completion tries or answers exactly the expression that another one answered."""
    expression = failed.text.rpartition("answer ")[2].strip()
    return any(attempt.expression == expression for attempt in again.attempts) or again.text.endswith(expression)


def information(subject: Subject, said: Sequence[Said], context: str) -> dict[str, tuple[float, float, int]]:
    """Mean u, mean |u| and count of the tokens of each class, for a context with a reference.

    u is the log-probability of a token with the reference shown less that without.
    """
    completions = [one.ids for one in said]
    teachers = [subject.prompt_ids(one.example, context, reference_fields(one.example)) for one in said]
    teacher = subject.logprobs(teachers, completions)
    student = subject.logprobs([one.prompt_ids for one in said], completions)
    u_of: dict[str, list[float]] = {name: [] for name in (*CLASSES, "give_up_jump")}
    for one, teacher_T, student_T in zip(said, teacher, student, strict=True):
        words = subject.tokenizer.convert_ids_to_tokens(one.ids)
        for i, (kind, u) in enumerate(zip(token_classes(words), (teacher_T - student_T).tolist(), strict=True)):
            u_of[kind].append(u)
            if kind == "jump" and "yes" not in words[max(0, i - 2) : i]:
                u_of["give_up_jump"].append(u)
    return {name: (mean(us), mean([abs(u) for u in us]), len(us)) for name, us in u_of.items() if us}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--difficulty", default="default")
    parser.add_argument("--samples", type=int, default=4, help="plain completions per problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=2, help="completions to print")
    args = parser.parse_args()
    subject = Subject(args.model_dir, args.difficulty)
    examples = list(subject.task.examples("validation"))
    plain = subject.sample(examples * args.samples, [{}] * (len(examples) * args.samples), "student", seed=args.seed)
    for one in plain[: args.show]:
        print(f"{one.example.prompt[-1].content}\n    {one.text}")
    found = search_properties(plain)
    found |= context_properties(subject, examples, seed=args.seed + 1)
    found |= feedback_properties(subject, plain, seed=args.seed + 2)
    for name, value in found.items():
        print(f"{name:32s} {value:.4g}")
    for k, (count, right) in enumerate(by_attempt(plain), start=1):
        print(f"attempt {k:2d}: reached by {count:5d}, right on it {right:.3f}")
    for context in ("solution", "sibling_verdict", "reference_only"):
        for name, (u, size, count) in information(subject, plain[: 2 * len(examples)], context).items():
            print(f"u under {context:16s} {name:14s} mean {u:+.3f}  mean size {size:.3f}  tokens {count}")


if __name__ == "__main__":
    main()
