"""What the toolbox base model can do: ``PYTHONPATH=scripts python -m toolbox_base.properties [MODEL_DIR]``.

Samples at temperature 1 on validation problems under several conventions, alone and under the contexts of a teacher,
and scores the model's own completions with and without a solution. The tests assert these numbers on the shipped model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from base_models.subject import MODELS, Said, Subject, mean, share
from selfdistill.config.tasks import ToolboxConfig
from selfdistill.tasks.toolbox.calls import DIMENSIONS, TOOLS, MalformedCall, complain, parse
from selfdistill.tasks.toolbox.task import ToolboxTask
from selfdistill.types import Example
from toolbox_base.reading import CLASSES, token_classes
from toolbox_base.traces import DELIBERATION

MODEL_DIR = MODELS / "toolbox-base"


def subject_under(model_dir: Path, conventions: int) -> Subject:
    """The model beside the task with these conventions."""
    return Subject(model_dir, ToolboxTask(ToolboxConfig(conventions=conventions)))


def conventions_in(one: Said) -> dict[str, str] | None:
    """The conventions that a call keeps, on the dimensions of its function; None where no conventions make it right.

    Such a call copied a value wrongly, or is malformed.
    """
    topic, values = one.example.columns["topic"], one.example.columns["values"]
    if one.verdict.answer is None:
        return None
    try:
        call = parse(one.verdict.answer)
    except MalformedCall:
        return None
    anything = {name: choices[0] for name, choices in DIMENSIONS.items()}
    for chosen in _combinations(TOOLS[topic].dimensions):
        if complain(call, topic, values, {**anything, **chosen}) is None:
            return chosen
    return None


def _combinations(dimensions: Sequence[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for name in dimensions:
        found = [{**chosen, name: value} for chosen in found for value in DIMENSIONS[name]]
    return found


def plain_properties(said: Sequence[Said]) -> dict[str, float]:
    """What the model does on its own."""
    read = [conventions_in(one) for one in said]
    found = {
        "accuracy": share([one.verdict.correct for one in said]),
        "copying_errors": share([chosen is None for chosen in read]),
        "tokens": mean([len(one.ids) for one in said]),
        "longest": max(len(one.ids) for one in said),
        "deliberation_tokens": deliberation(said),
    }
    for name, values in DIMENSIONS.items():
        chosen = [choice[name] for choice in read if choice is not None and name in choice]
        for value in values:
            found[f"guesses {name} = {value}"] = share([choice == value for choice in chosen])
    return found


def deliberation(said: Sequence[Said]) -> float:
    """Mean number of deliberating tokens."""
    return mean([float(sum(word in DELIBERATION for word in one.text.split())) for one in said])


def reference_fields(example: Example) -> dict[str, str]:
    """The fields of a context for an example outside a group, its reference standing in for a sibling."""
    call = example.fields["solution"]
    return {"solution": call, "sibling": f"call : {call} . done", "verdict": "wrong"}


def context_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Accuracy under each context with a reference of the same problem."""
    found: dict[str, float] = {}
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        said = subject.sample(examples, [reference_fields(example) for example in examples], context, seed=seed)
        found[f"accuracy_{context}"] = share([one.verdict.correct for one in said])
        found[f"deliberation_{context}"] = deliberation(said)
    return found


def feedback_properties(subject: Subject, said: Sequence[Said], *, seed: int) -> dict[str, float]:
    """How often a convention that feedback names is kept, and how often the same one is kept without.

    The feedback is what the model's own wrong calls earned; only the dimensions that it corrects are counted.
    """
    failed = [(one, chosen) for one in said if not one.verdict.correct and (chosen := conventions_in(one))]
    examples = [one.example for one, _ in failed]
    right = conventions_under(subject)
    named = [[name for name, value in chosen.items() if value != right[name]] for _, chosen in failed]
    fields = [{"feedback": one.verdict.feedback or ""} for one, _ in failed]
    shown = subject.sample(examples, fields, "feedback", seed=seed)
    plain = subject.sample(examples, [{} for _ in failed], "student", seed=seed + 1)
    return {
        "feedback_cases": len(failed),
        "keeps_with_feedback": kept(shown, named, right),
        "keeps_without_feedback": kept(plain, named, right),
        "accuracy_feedback": share([one.verdict.correct for one in shown]),
        "copying_errors_feedback": share([conventions_in(one) is None for one in shown]),
    }


def conventions_under(subject: Subject) -> Mapping[str, str]:
    """The conventions of the subject's task."""
    if not isinstance(subject.task, ToolboxTask):
        raise TypeError(f"{subject.task.name} has no conventions")
    return subject.task.conventions


def kept(said: Sequence[Said], named: Sequence[Sequence[str]], right: Mapping[str, str]) -> float:
    """The share of the named dimensions on which the calls are right; an unreadable call keeps none."""
    truths = [
        (conventions_in(one) or {}).get(name) == right[name]
        for one, names in zip(said, named, strict=True)
        for name in names
    ]
    return share(truths)


def transfer_properties(subject: Subject, examples: Sequence[Example], *, seed: int) -> dict[str, float]:
    """Whether another problem's right call shows its conventions: where they apply, and where they do not.

    Each problem is paired with one of another problem that shares a dimension. "Elsewhere" counts the dimensions that
    the shown call has not, which stay a guess.
    """
    rng = random.Random(seed)
    right = conventions_under(subject)
    questions, fields, shared, others = [], [], [], []
    for example in examples:
        mine = TOOLS[example.columns["topic"]].dimensions
        related = [e for e in examples if e is not example and set(mine) & set(dimensions_of(e))]
        other = rng.choice(related)
        questions.append(example)
        fields.append({**reference_fields(other), "other_question": example.prompt[-1].content})
        shared.append([name for name in mine if name in dimensions_of(other)])
        others.append([name for name in mine if name not in dimensions_of(other)])
    found: dict[str, float] = {}
    for context in ("solution", "sibling", "other_question_sibling"):
        said = subject.sample(questions, fields, context, seed=seed)
        found[f"transfer_{context}"] = kept(said, shared, right)
        found[f"transfer_elsewhere_{context}"] = kept(said, others, right)
        found[f"copying_errors_{context}"] = share([conventions_in(one) is None for one in said])
    return found


def dimensions_of(example: Example) -> tuple[str, ...]:
    """The dimensions of an example's function."""
    return TOOLS[example.columns["topic"]].dimensions


def information(subject: Subject, said: Sequence[Said], context: str) -> dict[str, tuple[float, float, int]]:
    """Mean u, mean |u| and count of the tokens of each class, for a context with a reference.

    u is the log-probability of a token with the reference shown less that without. Tokens that commit to a convention
    are split into those of the right one and those of a wrong one; wrong calls that no conventions explain are left
    out.
    """
    told = [one for one in said if conventions_in(one) is not None]
    completions = [one.ids for one in told]
    teachers = [subject.prompt_ids(one.example, context, reference_fields(one.example)) for one in told]
    teacher = subject.logprobs(teachers, completions)
    student = subject.logprobs([one.prompt_ids for one in told], completions)
    u_of: dict[str, list[float]] = {name: [] for name in (*CLASSES, "right_convention", "wrong_convention")}
    for one, teacher_T, student_T in zip(told, teacher, student, strict=True):
        topic, values = one.example.columns["topic"], list(one.example.columns["values"].values())
        words = list(subject.tokenizer.convert_ids_to_tokens(one.ids))
        chosen = conventions_in(one) or {}
        right = iter([chosen[n] == conventions_under(subject)[n] for n in TOOLS[topic].dimensions])
        for kind, u in zip(token_classes(words, topic, values), (teacher_T - student_T).tolist(), strict=True):
            u_of[kind].append(u)
            if kind == "convention":
                u_of["right_convention" if next(right) else "wrong_convention"].append(u)
    return {name: (mean(us), mean([abs(u) for u in us]), len(us)) for name, us in u_of.items() if us}


def main() -> None:
    """Measure and print."""
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
        found = plain_properties(plain)
        print(f"conventions {conventions}: {found['accuracy']:.3f} right, {dict(conventions_under(subject))}")
    for one in plain[: args.show]:
        print(f"{one.example.prompt[-1].content}\n    {one.text}")
    found |= context_properties(subject, examples, seed=args.seed + 1)
    found |= feedback_properties(subject, plain, seed=args.seed + 2)
    found |= transfer_properties(subject, examples, seed=args.seed + 3)
    for name, value in found.items():
        print(f"{name:44s} {value:.4g}")
    for context in ("solution", "sibling", "sibling_verdict"):
        for name, (u, size, count) in information(subject, plain[: 2 * len(examples)], context).items():
            print(f"u under {context:16s} {name:18s} mean {u:+.3f}  mean size {size:.3f}  tokens {count}")


if __name__ == "__main__":
    main()
