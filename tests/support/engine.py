"""A tiny student, groups of completions written by hand, and a trainer whose optimiser leaves the weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from selfdistill.config.sections import Limits, LoraConfig, ParallelConfig, limits_on
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, load_templates
from selfdistill.distributed.world import World
from selfdistill.files.records import flatten
from selfdistill.methods import Method, build_method
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.teachers import Teachers
from selfdistill.training.clock import Clock
from selfdistill.training.trainer import StepResult, Trainer
from selfdistill.types import Example, External, Message, Rollout, RolloutGroup, StepRecord, Verdict
from support.tiny import keep_float64

CONTEXTS = """
[bare]
text = "$question"
[solution]
text = "$question a correct solution is $solution . now solve the problem"
[sibling]
text = "$question another attempt was correct : $sibling . now solve the problem"
[feedback]
text = "$question feedback on an earlier attempt : $feedback ."
[sibling_or_feedback]
first_of = ["sibling", "feedback"]
[sibling_verdict]
text = "$question another attempt was : $sibling . the attempt below is $verdict ."
[solution_verdict]
text = "$question a correct solution is $solution . the attempt below is $verdict ."
[sibling_or_solution_verdict]
first_of = ["sibling_verdict", "solution_verdict"]
[reference_only]
text = "a correct solution is $solution . now solve the problem"
[other_question]
first_of = ["other_question_sibling", "other_question_feedback"]
[other_question_sibling]
text = "$other_question another attempt was correct : $sibling . now solve the problem"
[other_question_feedback]
text = "$other_question feedback on an earlier attempt : $feedback ."
[other_question_bare]
text = "$other_question"
[wrong_sibling]
text = "$question another attempt was correct : $wrong_sibling . now solve the problem"
[sibling_or_solution]
first_of = ["sibling", "solution"]
[answer_only]
text = "$question the answer is $answer ."
[wrong_answer]
text = "$question the answer is $wrong_answer ."
[note]
text = "$question a note : $note ."
[random_sibling]
text = "$question another attempt was correct : $random_sibling . now solve the problem"
[random_sibling_or_solution]
first_of = ["random_sibling", "solution"]
"""

QUESTIONS = ("use 3 4 to make 12 .", "make 9 .", "use the numbers 1 2 5 to make 8 .")
SOLUTIONS = ("3 × 4", "9", "1 + 2 + 5")
SAID: tuple[tuple[tuple[str, float | None, str | None], ...], ...] = (
    (
        ("try 3 + 4 = 7 . wait </think> answer 3 + 4", 0.0, "reaches 7"),
        ("let me try </think> answer 3 × 4", 1.0, None),
        ("</think> 4 × 3", 1.0, None),
        ("maybe", 0.25, None),
    ),
    (
        ("9", 0.0, "the answer is wrong"),
        ("hmm perhaps 9 = 9 </think>", 0.0, None),
        ("answer 2 + 7 .", 0.0, "use the numbers"),
        ("wait wait wait", 0.0, None),
    ),
    (
        ("1 + 2", None, None),
        ("yes </think> answer 1 + 2 + 5", 1.0, None),
        ("5 + 2 + 1 = 8 . </think> not 8", None, "not 8"),
        ("the", 0.5, "an answer is correct"),
    ),
)
"""Three groups of four: text, reward, feedback. The first is mixed, the second all wrong and partly without feedback
(no sibling, no feedback: no context), the third partly not judged."""


def load_exact(folder: Path, *, lora: LoraConfig | None = None, seed: int = 0) -> tuple[Policy, Chat]:
    """A model directory in float64 throughout."""
    policy, chat = load_policy(str(folder), dtype=torch.float64, device=torch.device("cpu"), lora=lora, seed=seed)
    return keep_float64(policy).double(), chat


def own_templates(folder: Path) -> dict[str, Template]:
    """The templates of :data:`CONTEXTS`, read from a file."""
    path = folder / "contexts.toml"
    path.write_text(CONTEXTS, encoding="utf-8")
    return load_templates(path)


def invent_groups(
    policy: Policy, chat: Chat, *, off: float = 0.4, seed: int = 0, solutions: bool = True
) -> list[RolloutGroup]:
    """The groups of :data:`SAID`, sampled by a policy whose log-probabilities differ by about ``off`` a token."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for question, solution, said in zip(QUESTIONS, SOLUTIONS, SAID, strict=True):
        prompt = (Message("user", question),)
        example = Example(question, prompt, {"solution": solution, "answer": solution} if solutions else {})
        rollouts = []
        for text, _, _ in said:
            prompt_ids = chat.encode(prompt)
            ids = chat.response(text)
            exact = token_logprobs(policy.model, prompt_ids, ids, policy.vocab_size)
            noise = off * torch.randn(len(ids), generator=generator, dtype=torch.float64)
            rollouts.append(Rollout(prompt_ids, ids, tuple((exact + noise).tolist()), True, text, 0))
        verdicts = tuple(
            Verdict(reward, text.partition("answer ")[2] or None, feedback) for text, reward, feedback in said
        )
        groups.append(RolloutGroup(example, tuple(rollouts), verdicts))
    return groups


@torch.no_grad()
def token_logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int], real: int) -> Tensor:
    """Log-probability of each completion token, by one plain forward of the whole sequence."""
    logits_LV = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1, :real]
    targets = torch.tensor(completion)
    logprobs: Tensor = torch.log_softmax(logits_LV, -1).gather(-1, targets[:, None]).squeeze(-1)
    return logprobs


def perturb(policy: Policy, *, seed: int = 1, size: float = 0.1) -> None:
    """Move the student away from where its teachers were copied."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@dataclass(slots=True)
class Bench:
    """A student and its teachers under one method; every step measures a gradient and moves nothing."""

    policy: Policy
    chat: Chat
    templates: Mapping[str, Template]
    method: Method
    trainer: Trainer

    def step(self, groups: Sequence[RolloutGroup], *, step: int = 1) -> StepResult:
        """One step of the trainer."""
        return self.trainer.step(groups, step=step, clock=Clock())

    def gradient(self) -> dict[str, Tensor]:
        """What the last step left, by parameter name."""
        named = self.policy.model.named_parameters()
        return {
            name: whole(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
            for name, parameter in named
            if parameter.requires_grad
        }


def numbers_of(record: StepRecord) -> dict[str, Any]:
    """Every number of a step: its line of ``metrics.jsonl``, and what was skipped by reason."""
    line = flatten(record)
    return {**{name: value for name, value in line.items() if not isinstance(value, dict)}, **line["skipped"]}


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def make_bench(
    policy: Policy,
    chat: Chat,
    templates: Mapping[str, Template],
    name: str,
    hyperparameters: Mapping[str, Any],
    *,
    limits: Limits | None = None,
    move: Callable[[Policy], None] | None = None,
    external: Mapping[External, Policy] | None = None,
    parallel: ParallelConfig | None = None,
) -> Bench:
    """A trainer around a policy. ``move`` changes the student after its teachers have been copied."""
    method = build_method(name, hyperparameters)
    needed = {role.weights for role in method.roles().values()}

    def place(one: Policy) -> None:
        one.place(parallel or ParallelConfig(), torch.device("cpu"))

    teachers = Teachers(policy, needed=needed, rate=method.teacher_rate, external=external, place=place)
    if move is not None:
        move(policy)
    place(policy)
    trainer = Trainer(
        policy,
        teachers,
        method,
        templates,
        chat,
        torch.optim.SGD(policy.trainable(), lr=0.0),
        learning_rate=lambda step: 0.0,
        clip_norm=0.0,
        limits=limits or limits_on("cpu"),
        thinking=None,
        world=World.current(),
    )
    return Bench(policy, chat, templates, method, trainer)


def only_correct(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The same groups with every reward 1, so that every completion has a sibling."""
    return [replace(group, verdicts=tuple(Verdict(1.0) for _ in group.verdicts)) for group in groups]


def distance(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest difference of two gradients, parameter by parameter, relative to that parameter's norm."""
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-30)) for name in theirs)


def size_of(gradient: Mapping[str, Tensor]) -> float:
    """Largest absolute entry."""
    return max(float(values.abs().max()) for values in gradient.values())


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
