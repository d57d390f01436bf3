"""Measure the Countdown base model: ``PYTHONPATH=scripts python -m countdown_base.properties [MODEL_DIR]``.

The script samples at temperature 1 on validation problems, alone and under the contexts of a teacher. It scores the
model's own completions with and without a reference. The tests assert these numbers on the shipped model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import base_models.subject
from base_models.subject import MODELS, Sample, mean, share
from countdown_base.reading import CLASSES, SpokenAttempt, attempts_in, token_classes
from countdown_base.traces import DELIBERATION, MOST_ATTEMPTS
from selfdistill.config.tasks import CountdownConfig
from selfdistill.tasks.countdown.arithmetic import normal_form, parse
from selfdistill.tasks.countdown.task import CountdownTask
from selfdistill.types import Example

MODEL_DIR = MODELS / "countdown-base"


class Subject(base_models.subject.Subject):
    """A Countdown model under measurement, with its task and contexts."""

    def __init__(self, model_dir: Path, difficulty: str) -> None:
        super().__init__(model_dir, CountdownTask(CountdownConfig(difficulty=difficulty)))


def attempts_of(sample: Sample) -> list[SpokenAttempt]:
    """Return the attempts in a completion's thinking."""
    return attempts_in(sample.text, sample.example.columns["numbers"])


def search_properties(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the properties of the model's search without help."""
    attempts = [attempts_of(sample) for sample in samples]
    flat = [attempt for spoken in attempts for attempt in spoken]
    repeated = [
        attempt.expression in [earlier.expression for earlier in spoken[:i]]
        for spoken in attempts
        for i, attempt in enumerate(spoken)
        if i and attempt.expression is not None
    ]
    false_verdicts = [
        (attempt.verdict == "yes") != (attempt.value == sample.example.columns["target"])
        for sample, spoken in zip(samples, attempts, strict=True)
        for attempt in spoken
    ]
    words = [sample.text.split() for sample in samples]
    return {
        "accuracy": share([sample.verdict.correct for sample in samples]),
        "tokens": mean([len(sample.ids) for sample in samples]),
        "longest": max(len(sample.ids) for sample in samples),
        "truncated": share(
            [sample.verdict.feedback is not None and "cut before" in sample.verdict.feedback for sample in samples]
        ),
        "attempts": mean([len(spoken) for spoken in attempts]),
        "most_attempts": max(map(len, attempts)),
        "deliberation_tokens": mean([sum(word in DELIBERATION for word in text) for text in words]),
        "slips": share([attempt.slip for attempt in flat]),
        "misused_numbers": share([attempt.expression is None for attempt in flat]),
        "false_verdicts": share(false_verdicts),
        "repeated_attempts": share(repeated),
    }


def by_attempt(samples: Sequence[Sample]) -> list[tuple[int, float]]:
    """Return, for k = 1, 2, …, the number of completions that reached attempt k, and the share of them right on it."""
    table: list[tuple[int, float]] = []
    for k in range(1, MOST_ATTEMPTS + 1):
        reached = [sample for sample in samples if len(attempts_of(sample)) >= k]
        if not reached:
            break
        right = [sample for sample in reached if sample.verdict.correct and len(attempts_of(sample)) == k]
        table.append((len(reached), len(right) / len(reached)))
    return table


def context_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Return accuracy under each context with a reference, and how often the model answers the reference."""
    properties: dict[str, float] = {}
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        fields = [reference_fields(example) for example in examples]
        samples = subject.sample(examples, fields, context, seed=seed)
        properties[f"accuracy_{context}"] = share([sample.verdict.correct for sample in samples])
        properties[f"follows_{context}"] = share(
            [sample.verdict.answer == normal_form(parse(sample.example.fields["solution"])) for sample in samples]
        )
        properties[f"deliberation_{context}"] = mean(
            [float(sum(word in DELIBERATION for word in sample.text.split())) for sample in samples]
        )
    return properties


def reference_fields(example: Example) -> dict[str, str]:
    """Return a context's fields for an example without a group; its reference replaces a sibling."""
    return {
        "solution": example.fields["solution"],
        "sibling": f"answer {example.fields['solution']}",
        "verdict": "wrong",
    }


def feedback_properties(subject: Subject, samples: Sequence[Sample], *, seed: int) -> dict[str, float]:
    """Return how often an attempt is repeated after feedback has named it, and how often without feedback.

    The attempts are the model's own wrong answers. Both arms are fresh samples on the same problems.
    """
    failed = [sample for sample in samples if sample.verdict.feedback is not None and sample.verdict.answer is not None]
    examples = [sample.example for sample in failed]
    fields = [{"feedback": sample.verdict.feedback or ""} for sample in failed]
    shown = subject.sample(examples, fields, "feedback", seed=seed)
    plain = subject.sample(examples, [{} for _ in failed], "student", seed=seed + 1)
    properties: dict[str, float] = {"feedback_cases": len(failed)}
    for name, again in (("with", shown), ("without", plain)):
        properties[f"repeats_{name}_feedback"] = share(
            [_repeats(a, sample) for a, sample in zip(again, failed, strict=True)]
        )
        properties[f"answers_again_{name}_feedback"] = share(
            [a.verdict.answer == sample.verdict.answer for a, sample in zip(again, failed, strict=True)]
        )
        properties[f"accuracy_{name}_feedback"] = share([a.verdict.correct for a in again])
    return properties


def _repeats(again: Sample, failed: Sample) -> bool:
    """Whether a completion tries or answers the same expression as another completion answered."""
    expression = failed.text.rpartition("answer ")[2].strip()
    return any(attempt.expression == expression for attempt in attempts_of(again)) or again.text.endswith(expression)


def information(subject: Subject, samples: Sequence[Sample], context: str) -> dict[str, tuple[float, float, int]]:
    """Return mean u, mean |u| and count of the tokens of each class, for a context with a reference.

    u is the log-probability of a token with the reference minus that without.
    """
    completions = [sample.ids for sample in samples]
    teachers = [subject.prompt_ids(sample.example, context, reference_fields(sample.example)) for sample in samples]
    teacher = subject.logprobs(teachers, completions)
    student = subject.logprobs([sample.prompt_ids for sample in samples], completions)
    u_of: dict[str, list[float]] = {name: [] for name in (*CLASSES, "give_up_jump")}
    for sample, teacher_T, student_T in zip(samples, teacher, student, strict=True):
        words = subject.tokenizer.convert_ids_to_tokens(sample.ids)
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
    for sample in plain[: args.show]:
        print(f"{sample.example.prompt[-1].content}\n    {sample.text}")
    properties = search_properties(plain)
    properties |= context_properties(subject, examples, seed=args.seed + 1)
    properties |= feedback_properties(subject, plain, seed=args.seed + 2)
    for name, value in properties.items():
        print(f"{name:32s} {value:.4g}")
    for k, (count, right) in enumerate(by_attempt(plain), start=1):
        print(f"attempt {k:2d}: reached by {count:5d}, right on it {right:.3f}")
    for context in ("solution", "sibling_verdict", "reference_only"):
        for name, (u, size, count) in information(subject, plain[: 2 * len(examples)], context).items():
            print(f"u under {context:16s} {name:14s} mean {u:+.3f}  mean size {size:.3f}  tokens {count}")


if __name__ == "__main__":
    main()
