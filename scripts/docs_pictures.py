"""Draw the documentation's pictures of the methods: ``python scripts/docs_pictures.py``.

The shipped base model samples completions of Countdown problems with a fixed seed, and the inspection scores them. A
correct and a wrong completion of one problem are drawn with the credit of every method. Methods that learn from other
texts show those: ``sft`` a solution, ``pbsd`` a pair, ``pbsd_reward`` two weighted samples of its teacher, ``hdpo`` a
right sample of a hard problem. ``gain`` is exact and needs no model. Another machine may sample other completions; the
drawn ones are chosen by a fixed rule. Every token's number is its title in the picture.
Names of pictures after the script's name draw only these.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from docs_site.gain import gain_picture
from docs_site.strips import Strip, draw
from selfdistill.config.run import config_for
from selfdistill.contexts.fields import role_prompt
from selfdistill.contexts.templates import load_templates
from selfdistill.evaluation.words import load_classes
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.inspection.files import TokenTable, token_table
from selfdistill.methods import build_method
from selfdistill.objectives import preference_loss, preference_margin
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import Sampled, add_rollouts, from_solutions, sample_and_verify
from selfdistill.tasks.build import build_task
from selfdistill.training.build import build_policy
from selfdistill.types import Role, RolloutGroup, Skipped

TARGET = Path(__file__).resolve().parents[1] / "docs" / "pictures"
METHODS = (
    *("grpo", "sd", "antisd", "opsd", "sdft", "sdpo", "credit", "purified"),
    *("sc_sdpo", "paced", "demopsd", "eopd"),
    *("cepo", "rlcsd", "rlsd", "sdar", "sdpg", "skill_sd", "srpo"),
    "crisp",
)
SETTINGS = {
    "crisp": ("opsd", {"context": "brief", "divergence": {"kind": "reverse_kl"}, "score_temperature": 1.0}),
    # HDPO's loss on the samples of its teacher.
    "hdpo": (
        "opsd",
        {"divergence": build_method("hdpo", {}).model_dump()["divergence"], "score_temperature": 1.0},
    ),
}
"""Pictures of a method under another name, with its hyperparameters."""
TEACHER = "solution"
PROBLEMS, SAMPLES, SEED = 16, 8, 0
LONGEST = 70
"""Maximum number of tokens of a drawn completion, so that it stays readable."""

Numbers = NDArray[np.float64]
CREDIT = ("pushed down", "pushed up")


class Bench:
    """The model, the task, and the objects that sample and inspect completions."""

    def __init__(self) -> None:
        config = config_for("countdown-base", "countdown", [], command="docs_pictures")
        self.task = build_task(config.task, seed=config.seed, reward=None)
        self.templates = load_templates(self.task.contexts)
        self.policy, self.chat = build_policy(config.model, seed=config.seed)
        self.examples = self.task.examples("train")[:PROBLEMS]
        self.sampler = policy_sampler(self.policy, self.chat)

    def table(self, groups: Sequence[RolloutGroup], methods: Sequence[str]) -> TokenTable:
        """The token table of some groups, with u under the solution."""
        built = {name: build_method(*SETTINGS.get(name, (name, {}))) for name in methods}
        inspection_plan = plan(built, [TEACHER], self.templates)
        findings = inspect_groups(
            self.policy, self.chat, groups, inspection_plan, self.templates,
            thinking=None, prompts=PROBLEMS, max_tokens=4096, max_logits_per_chunk=1 << 24, seed=SEED,
        )  # fmt: skip
        return token_table(findings, self.chat, load_classes(None))

    def students(self) -> list[RolloutGroup]:
        """Completions that the student samples."""
        params = SamplingParams(count=SAMPLES, max_tokens=256, seed=SEED)
        return sample_and_verify(self.examples, self.task, self.sampler, self.chat, params)

    def teachers(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """Completions of the same problems that the teacher samples from the context with the solution."""
        prompts = []
        for group in groups:
            prompt = role_prompt(
                Role(TEACHER), group.example, group.example.fields, self.templates, self.chat, thinking=None, room=256
            )
            assert not isinstance(prompt, Skipped), prompt
            prompts.append(prompt)
        params = SamplingParams(count=SAMPLES, max_tokens=256, seed=SEED + 1)
        sampled = Sampled(prompts, self.sampler.sample(prompts, params))
        students = [self.chat.encode(group.example.prompt) for group in groups]
        empty = [RolloutGroup(group.example, (), ()) for group in groups]
        rollouts = sampled.rollouts(self.chat, source="teacher", student_prompts=students)
        return add_rollouts(self.task, empty, rollouts)


def parts_of(table: TokenTable, values: Numbers) -> list[Numbers]:
    """The numbers of all tokens, split by completion."""
    return np.split(values, np.cumsum(table.findings.lengths)[:-1])


def choose_pair(table: TokenTable) -> tuple[int, int]:
    """A correct and a wrong completion of one problem that both deliberate and are short enough to read.

    The chosen problem is solved closest to half of the time, so the advantages of both have a similar size.
    """
    by_problem: dict[int, dict[bool, int]] = {}
    for c, (sample, length) in enumerate(zip(table.samples, table.findings.lengths, strict=True)):
        tries = sum(piece.body.strip() == "try" for piece in sample.pieces)
        if sample.finished and tries >= 2 and length <= LONGEST:
            by_problem.setdefault(table.findings.places[c][0], {}).setdefault(sample.reward == 1, c)

    def unevenness(problem: int) -> float:
        verdicts = table.findings.groups[problem].verdicts
        return abs(sum(verdict.correct for verdict in verdicts) / len(verdicts) - 0.5)

    best = min((problem for problem, pair in by_problem.items() if len(pair) == 2), key=unevenness)
    return by_problem[best][True], by_problem[best][False]


def strip(table: TokenTable, c: int, values: Numbers, caption: str) -> Strip:
    """Completion ``c`` with its part of the numbers of all tokens."""
    return Strip(caption, table.samples[c].pieces, parts_of(table, values)[c].tolist())


def caption_of(table: TokenTable, c: int) -> str:
    """The problem and the verdict of a completion."""
    sample = table.samples[c]
    return f"{sample.prompt.strip(' .')}: {'correct' if sample.reward == 1 else 'wrong'}, reward {sample.reward:g}"


def credit_pictures(table: TokenTable) -> dict[str, str]:
    """One picture of u, and one for every method that gives credit to sampled completions."""
    pair = choose_pair(table)
    pictures = {
        "u": draw(
            "u of two completions under a solution, token by token",
            ("less likely with hindsight", "more likely with hindsight"),
            [strip(table, c, table.signals[f"u {TEACHER}"], caption_of(table, c)) for c in pair],
            " nats",
        )
    }
    for name in METHODS:
        strips = [strip(table, c, table.signals[f"credit {name}"], caption_of(table, c)) for c in pair]
        pictures[name] = draw(f"The credit that {name} gives to each token of two completions", CREDIT, strips)
    return pictures


def sft_picture(bench: Bench, example: int) -> str:
    """Credit 1 − S(y) of a solution's tokens."""
    table = bench.table(from_solutions(bench.examples[example : example + 1], bench.chat, thinking=None), ())
    credit = -np.expm1(table.findings.logprobs["student"].astype(np.float64))
    prompt = table.samples[0].prompt.strip(" .")
    return draw(
        "The credit that sft gives to each token of a solution",
        CREDIT,
        [strip(table, 0, credit, f"{prompt}: the data's own response")],
    )


def pbsd_picture(students: TokenTable, teachers: TokenTable, beta: float) -> str:
    """A teacher's and a student's completion of one problem, and the weight that their tokens carry."""
    _, minus = choose_pair(students)
    problem = students.findings.places[minus][0]
    plus = next(c for c, place in enumerate(teachers.findings.places) if place[0] == problem)
    scores = [
        torch.tensor([parts_of(table, table.findings.logprobs[name].astype(np.float64))[c].sum()])
        for table, c in ((teachers, plus), (students, minus))
        for name in ("student", TEACHER)
    ]
    margin = preference_margin(*scores, beta=beta)
    slope = beta * torch.sigmoid(-margin).item()
    strips = []
    for table, c, sign, origin in (
        (teachers, plus, 1, "the teacher's sample y⁺"),
        (students, minus, -1, "the student's sample y⁻"),
    ):
        logprobs = table.findings.logprobs["student"].astype(np.float64)
        weight = f"{'+' if sign > 0 else '−'}{slope:.3f}"
        strips.append(
            strip(
                table,
                c,
                sign * slope * -np.expm1(logprobs),
                f"{origin}, each token's weight {weight} ({caption_of(table, c)})",
            )
        )
    title = f"A pair of pbsd: margin {margin.item():.2f}, loss {preference_loss(margin).item():.2f}"
    return draw(title, CREDIT, strips)


def hdpo_picture(bench: Bench, students: Sequence[RolloutGroup], teachers: Sequence[RolloutGroup]) -> str:
    """The teacher's longest readable right sample of the problem that the student solves most rarely."""

    def solved(group: RolloutGroup) -> int:
        return sum(verdict.correct for verdict in group.verdicts)

    student_group, teacher_group = min(zip(students, teachers, strict=True), key=lambda pair: solved(pair[0]))
    right = [
        RolloutGroup(teacher_group.example, (rollout,), (verdict,))
        for rollout, verdict in zip(teacher_group.rollouts, teacher_group.verdicts, strict=True)
        if verdict.correct and len(rollout.completion_ids) <= LONGEST
    ]
    table = bench.table([max(right, key=lambda group: len(group.rollouts[0].completion_ids))], ["hdpo"])
    caption = (
        f"the teacher's sample ({caption_of(table, 0)}); of the student's {SAMPLES}, {solved(student_group)} was right"
    )
    strips = [strip(table, 0, table.signals["credit hdpo"], caption)]
    return draw("The credit that hdpo gives to each token of a sample of its teacher", CREDIT, strips)


def pbsd_reward_picture(teachers: TokenTable, beta: float) -> str:
    """Two of the teacher's samples of one problem, one of them wrong, with their weights."""
    by_problem: dict[int, list[int]] = {}
    for c, (problem, _) in enumerate(teachers.findings.places):
        by_problem.setdefault(problem, []).append(c)
    members = next(m for m in by_problem.values() if len({teachers.samples[c].reward for c in m}) > 1)
    rewards = torch.tensor([teachers.samples[c].reward for c in members], dtype=torch.float64)
    weights = dict(zip(members, (rewards / beta).softmax(0).tolist(), strict=True))
    logprobs = teachers.findings.logprobs["student"].astype(np.float64)
    drawn = [next(c for c in members if teachers.samples[c].reward == reward) for reward in (1.0, 0.0)]
    strips = [
        strip(teachers, c, -weights[c] * np.expm1(logprobs), f"weight {weights[c]:.5f} ({caption_of(teachers, c)})")
        for c in drawn
    ]
    return draw("What pbsd_reward makes of two samples of its teacher", CREDIT, strips)


def main() -> None:
    """Draw all pictures and print their folder."""
    torch.manual_seed(SEED)
    bench = Bench()
    groups = bench.students()
    by_teachers = bench.teachers(groups)
    students, teachers = bench.table(groups, METHODS), bench.table(by_teachers, ())
    pictures: Mapping[str, str] = {
        **credit_pictures(students),
        "sft": sft_picture(bench, students.findings.places[choose_pair(students)[0]][0]),
        "pbsd": pbsd_picture(students, teachers, beta=0.1),
        "pbsd_reward": pbsd_reward_picture(teachers, beta=0.1),
        "hdpo": hdpo_picture(bench, groups, by_teachers),
        "gain": gain_picture(),
    }
    wanted = sys.argv[1:] or [*pictures]
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        (TARGET / f"{name}.svg").write_text(pictures[name], encoding="utf-8")
    print(f"{len(wanted)} pictures in {TARGET}; {math.fsum(students.findings.lengths):.0f} tokens were looked at")


if __name__ == "__main__":
    main()
