"""What the Countdown base model can do: ``PYTHONPATH=scripts python -m countdown_base.properties [MODEL_DIR]``.

Samples at temperature 1 on validation problems, alone and under the contexts of a teacher, and scores the model's own
completions with and without a reference. The tests assert these numbers on the shipped model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import base_models.subject
from base_models.subject import MODELS, Said, mean, share
from countdown_base.reading import CLASSES, SpokenAttempt, attempts_in, token_classes
from countdown_base.traces import DELIBERATION, MOST_ATTEMPTS
from selfdistill.config.tasks import CountdownConfig
from selfdistill.tasks.countdown.arithmetic import normal_form, parse
from selfdistill.tasks.countdown.task import CountdownTask
from selfdistill.types import Example

MODEL_DIR = MODELS / "countdown-base"


class Subject(base_models.subject.Subject):
    """A Countdown model under examination, with its task and contexts."""

    def __init__(self, model_dir: Path, difficulty: str) -> None:
        super().__init__(model_dir, CountdownTask(CountdownConfig(difficulty=difficulty)))


def attempts_of(one: Said) -> list[SpokenAttempt]:
    """The attempts that a completion spoke aloud."""
    return attempts_in(one.text, one.example.columns["numbers"])


def search_properties(said: Sequence[Said]) -> dict[str, float]:
    """How the model searches on its own."""
    attempts = [attempts_of(one) for one in said]
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
        reached = [one for one in said if len(attempts_of(one)) >= k]
        if not reached:
            break
        right = [one for one in reached if one.verdict.correct and len(attempts_of(one)) == k]
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
    return any(attempt.expression == expression for attempt in attempts_of(again)) or again.text.endswith(expression)


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
