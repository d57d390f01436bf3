"""Measure the toolbox base model: ``PYTHONPATH=scripts python -m toolbox_base.properties [MODEL_DIR]``.

The script samples at temperature 1 on validation problems under several conventions, alone and under the contexts of a
teacher. It scores the model's own completions with and without a solution. The tests assert these numbers on the
shipped model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from base_models.subject import MODELS, Sample, Subject, mean, share
from selfdistill.config.tasks import ToolboxConfig
from selfdistill.tasks.toolbox.calls import DIMENSIONS, TOOLS, MalformedCall, complain, parse
from selfdistill.tasks.toolbox.task import ToolboxTask
from selfdistill.types import Example
from toolbox_base.reading import CLASSES, token_classes
from toolbox_base.traces import DELIBERATION

MODEL_DIR = MODELS / "toolbox-base"


def subject_under(model_dir: Path, conventions: int) -> Subject:
    """Return the model with the task under these conventions."""
    return Subject(model_dir, ToolboxTask(ToolboxConfig(conventions=conventions)))


def conventions_in(sample: Sample) -> dict[str, str] | None:
    """Return the conventions that a call follows, on the dimensions of its function.

    Returns None if no conventions make the call right: it copied a value wrongly, or it is malformed.
    """
    topic, values = sample.example.columns["topic"], sample.example.columns["values"]
    if sample.verdict.answer is None:
        return None
    try:
        call = parse(sample.verdict.answer)
    except MalformedCall:
        return None
    anything = {name: choices[0] for name, choices in DIMENSIONS.items()}
    for chosen in _combinations(TOOLS[topic].dimensions):
        if complain(call, topic, values, {**anything, **chosen}) is None:
            return chosen
    return None


def _combinations(dimensions: Sequence[str]) -> list[dict[str, str]]:
    combinations: list[dict[str, str]] = [{}]
    for name in dimensions:
        combinations = [{**chosen, name: value} for chosen in combinations for value in DIMENSIONS[name]]
    return combinations


def plain_properties(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the properties of the model without help."""
    followed = [conventions_in(sample) for sample in samples]
    properties = {
        "accuracy": share([sample.verdict.correct for sample in samples]),
        "copying_errors": share([chosen is None for chosen in followed]),
        "tokens": mean([len(sample.ids) for sample in samples]),
        "longest": max(len(sample.ids) for sample in samples),
        "deliberation_tokens": deliberation(samples),
    }
    for name, values in DIMENSIONS.items():
        chosen = [choice[name] for choice in followed if choice is not None and name in choice]
        for value in values:
            properties[f"guesses {name} = {value}"] = share([choice == value for choice in chosen])
    return properties


def deliberation(samples: Sequence[Sample]) -> float:
    """Return the mean number of deliberation tokens."""
    return mean([float(sum(word in DELIBERATION for word in sample.text.split())) for sample in samples])


def reference_fields(example: Example) -> dict[str, str]:
    """Return a context's fields for an example without a group; its reference replaces a sibling."""
    call = example.fields["solution"]
    return {"solution": call, "sibling": f"call : {call} . done", "verdict": "wrong"}


def context_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Return accuracy under each context with a reference of the same problem."""
    properties: dict[str, float] = {}
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        samples = subject.sample(examples, [reference_fields(example) for example in examples], context, seed=seed)
        properties[f"accuracy_{context}"] = share([sample.verdict.correct for sample in samples])
        properties[f"deliberation_{context}"] = deliberation(samples)
    return properties


def feedback_properties(subject: Subject, samples: Sequence[Sample], *, seed: int) -> dict[str, float]:
    """Return how often calls follow a convention that feedback names, with this feedback and without it.

    The feedback is that on the model's own wrong calls. Only the dimensions that it corrects are counted.
    """
    failed = [
        (sample, chosen) for sample in samples if not sample.verdict.correct and (chosen := conventions_in(sample))
    ]
    examples = [sample.example for sample, _ in failed]
    right = conventions_under(subject)
    named = [[name for name, value in chosen.items() if value != right[name]] for _, chosen in failed]
    fields = [{"feedback": sample.verdict.feedback or ""} for sample, _ in failed]
    shown = subject.sample(examples, fields, "feedback", seed=seed)
    plain = subject.sample(examples, [{} for _ in failed], "student", seed=seed + 1)
    return {
        "feedback_cases": len(failed),
        "keeps_with_feedback": kept(shown, named, right),
        "keeps_without_feedback": kept(plain, named, right),
        "accuracy_feedback": share([sample.verdict.correct for sample in shown]),
        "copying_errors_feedback": share([conventions_in(sample) is None for sample in shown]),
    }


def conventions_under(subject: Subject) -> Mapping[str, str]:
    """Return the conventions of the subject's task."""
    if not isinstance(subject.task, ToolboxTask):
        raise TypeError(f"{subject.task.name} has no conventions")
    return subject.task.conventions


def kept(samples: Sequence[Sample], named: Sequence[Sequence[str]], right: Mapping[str, str]) -> float:
    """Return the share of the named dimensions on which the calls are right; an unreadable call is wrong on all."""
    truths = [
        (conventions_in(sample) or {}).get(name) == right[name]
        for sample, names in zip(samples, named, strict=True)
        for name in names
    ]
    return share(truths)


def transfer_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Measure whether the model follows the conventions of another problem's right call.

    Each problem is paired with another problem that shares a dimension. "Elsewhere" counts the dimensions that the
    shown call lacks, on which the model can only guess.
    """
    rng = random.Random(seed)
    right = conventions_under(subject)
    questions, fields, shared, others = [], [], [], []
    for example in examples:
        own_dimensions = TOOLS[example.columns["topic"]].dimensions
        related = [e for e in examples if e is not example and set(own_dimensions) & set(dimensions_of(e))]
        other = rng.choice(related)
        questions.append(example)
        fields.append({**reference_fields(other), "other_question": example.prompt[-1].content})
        shared.append([name for name in own_dimensions if name in dimensions_of(other)])
        others.append([name for name in own_dimensions if name not in dimensions_of(other)])
    properties: dict[str, float] = {}
    for context in ("solution", "sibling", "other_question_sibling"):
        samples = subject.sample(questions, fields, context, seed=seed)
        properties[f"transfer_{context}"] = kept(samples, shared, right)
        properties[f"transfer_elsewhere_{context}"] = kept(samples, others, right)
        properties[f"copying_errors_{context}"] = share([conventions_in(sample) is None for sample in samples])
    return properties


def dimensions_of(example: Example) -> tuple[str, ...]:
    """Return the dimensions of an example's function."""
    return TOOLS[example.columns["topic"]].dimensions


def information(subject: Subject, samples: Sequence[Sample], context: str) -> dict[str, tuple[float, float, int]]:
    """Return mean u, mean |u| and count of the tokens of each class, for a context with a reference.

    u is the log-probability of a token with the reference minus that without. Tokens that commit to a convention are
    split into right and wrong conventions. Wrong calls that no conventions explain are left out.
    """
    readable = [sample for sample in samples if conventions_in(sample) is not None]
    completions = [sample.ids for sample in readable]
    teachers = [subject.prompt_ids(sample.example, context, reference_fields(sample.example)) for sample in readable]
    teacher = subject.logprobs(teachers, completions)
    student = subject.logprobs([sample.prompt_ids for sample in readable], completions)
    u_of: dict[str, list[float]] = {name: [] for name in (*CLASSES, "right_convention", "wrong_convention")}
    for sample, teacher_T, student_T in zip(readable, teacher, student, strict=True):
        topic, values = sample.example.columns["topic"], list(sample.example.columns["values"].values())
        words = list(subject.tokenizer.convert_ids_to_tokens(sample.ids))
        chosen = conventions_in(sample) or {}
        right = iter([chosen[n] == conventions_under(subject)[n] for n in TOOLS[topic].dimensions])
        for kind, u in zip(token_classes(words, topic, values), (teacher_T - student_T).tolist(), strict=True):
            u_of[kind].append(u)
            if kind == "convention":
                u_of["right_convention" if next(right) else "wrong_convention"].append(u)
    return {name: (mean(us), mean([abs(u) for u in us]), len(us)) for name, us in u_of.items() if us}


def main() -> None:
    """Measure the model and print its properties."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--conventions", type=int, nargs="+", default=[0, 1, 2, 3], help="seeds of conventions")
    parser.add_argument("--samples", type=int, default=4, help="plain completions per problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=4, help="completions to print")
    args = parser.parse_args()
    for conventions in args.conventions:
        subject = subject_under(args.model_dir, conventions)
        examples = list(subject.task.examples("validation"))
        plain = subject.sample(examples * args.samples, [{}] * len(examples) * args.samples, "student", seed=args.seed)
        properties = plain_properties(plain)
        print(f"conventions {conventions}: {properties['accuracy']:.3f} right, {dict(conventions_under(subject))}")
    for sample in plain[: args.show]:
        print(f"{sample.example.prompt[-1].content}\n    {sample.text}")
    properties |= context_properties(subject, examples, seed=args.seed + 1)
    properties |= feedback_properties(subject, plain, seed=args.seed + 2)
    properties |= transfer_properties(subject, examples, seed=args.seed + 3)
    for name, value in properties.items():
        print(f"{name:44s} {value:.4g}")
    for context in ("solution", "sibling", "sibling_verdict"):
        for name, (u, size, count) in information(subject, plain[: 2 * len(examples)], context).items():
            print(f"u under {context:16s} {name:18s} mean {u:+.3f}  mean size {size:.3f}  tokens {count}")


if __name__ == "__main__":
    main()
