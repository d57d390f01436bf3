"""Measures a teacher: its preference gap over the student, and the shift between the two.

Both quantities come from the analysis of PBSD (arXiv 2605.05040). The *preference gap* is the accuracy of the teacher's
samples minus that of the student's; without a gap, preferring the teacher prefers noise. The *shift* is the KL
divergence between the two; if it is large, the student rarely samples what the teacher would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from selfdistill.evaluation.compatibility import Compatibility, measure_compatibility
from selfdistill.evaluation.statistics import Estimate, average_per_problem, bootstrap, paired_difference
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.rollouts import RolloutWorker, sample_and_verify
from selfdistill.scoring.prepare import render
from selfdistill.scoring.score import score_roles, score_views
from selfdistill.seeds import derive
from selfdistill.tasks.judging import verify_all
from selfdistill.types import STUDENT, Example, Role, Rollout, RolloutGroup, Skipped, View

TEACHER = "teacher"


@dataclass(slots=True)
class TeacherGap:
    """The gap and the shifts of one teacher, over the completions that its context could be rendered for.

    ``student`` and ``teacher`` are shares of correct completions, ``gap`` is their paired difference. The shifts are KL
    divergences in nats per completion: KL(S‖T) estimated on the student's samples, KL(T‖S) on the teacher's.
    """

    student: Estimate
    teacher: Estimate
    gap: Estimate
    shift_on_student: Estimate
    shift_on_teacher: Estimate
    per_token_on_student: float
    per_token_on_teacher: float
    problems: int
    completions: int
    skipped: Counter[str] = field(default_factory=Counter)
    compatibility: Compatibility | None = None
    """How far the model is from Bayes' rule under this context; None if the context shows no answer."""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON."""
        names = ("student", "teacher", "gap", "shift_on_student", "shift_on_teacher")
        return {
            **{name: getattr(self, name).as_dict() for name in names},
            "per_token_on_student": self.per_token_on_student,
            "per_token_on_teacher": self.per_token_on_teacher,
            "problems": self.problems,
            "completions": self.completions,
            "skipped": dict(self.skipped),
            "compatibility": self.compatibility and self.compatibility.to_json(),
        }


def measure_teacher_gap(
    role: Role, worker: RolloutWorker, examples: Sequence[Example], *, samples: int, seed: int, max_tokens: int
) -> TeacherGap | Counter[str]:
    """Measure one teacher. For every completion of the student, the teacher samples one with the same hindsight.

    Both sample at temperature 1, where the mean log-probability difference estimates a KL divergence. ``max_tokens``
    bounds a micro-batch. If the context could be rendered for no completion, the reasons and their counts are returned.
    """
    policy = worker.teachers.policy
    params = SamplingParams(count=samples, max_tokens=worker.params.max_tokens, seed=derive(seed, STUDENT))
    groups = sample_and_verify(examples, worker.task, worker.sampler, worker.chat, params, thinking=worker.thinking)
    rendered = render(
        groups,
        {TEACHER: role},
        worker.templates,
        worker.chat,
        thinking=worker.thinking,
        seed=0,
        room=params.max_tokens,
    )
    prompt_by_index = {(g, i): row[i][TEACHER] for g, row in enumerate(rendered) for i in range(len(row))}
    prompts = {index: ids for index, ids in prompt_by_index.items() if isinstance(ids, tuple)}
    skipped = Counter(ids.reason for ids in prompt_by_index.values() if isinstance(ids, Skipped))
    indices = sorted(prompts)
    if not indices:
        return skipped
    teacher_rollout_of = _sample_teacher(
        role, worker, groups, prompts, replace(params, count=1, seed=derive(seed, "teacher"))
    )
    student_rollouts = [groups[g].rollouts[i] for g, i in indices]
    teacher_rollouts = [teacher_rollout_of[index] for index in indices]
    student_correct = [groups[g].verdicts[i].correct for g, i in indices]
    to_verify = [(groups[g].example, r.text, r.finished) for (g, _), r in zip(indices, teacher_rollouts, strict=True)]
    teacher_correct = [verdict.correct for verdict in verify_all(worker.task, to_verify)]
    shifts = [
        _log_ratios(role, worker, policy, rollouts, [prompts[index] for index in indices], sign, max_tokens)
        for rollouts, sign in ((student_rollouts, 1.0), (teacher_rollouts, -1.0))
    ]
    summary = _summary(indices, student_correct, teacher_correct, shifts, student_rollouts, teacher_rollouts, skipped)
    summary.compatibility = measure_compatibility(
        policy,
        worker.chat,
        groups,
        role,
        worker.templates,
        thinking=worker.thinking,
        seed=0,
        max_tokens=max_tokens,
    )
    return summary


def _sample_teacher(
    role: Role,
    worker: RolloutWorker,
    groups: Sequence[RolloutGroup],
    prompts: Mapping[tuple[int, int], tuple[int, ...]],
    params: SamplingParams,
) -> dict[tuple[int, int], Rollout]:
    indices = sorted(prompts)
    chat = worker.chat
    with worker.engines.sampler(worker.teachers, role.weights) as sampler:
        completions = sampler.sample([prompts[index] for index in indices], params)
    return {
        (g, i): Rollout(
            groups[g].rollouts[i].prompt_ids,
            completion.ids,
            completion.logprobs,
            completion.finished,
            chat.decode(completion.ids),
            0,
            TEACHER,
            prompts[g, i],
        )
        for (g, i), (completion,) in zip(indices, completions, strict=True)
    }


def _log_ratios(
    role: Role,
    worker: RolloutWorker,
    policy: Policy,
    rollouts: Sequence[Rollout],
    prompts: Sequence[tuple[int, ...]],
    sign: float,
    max_tokens: int,
) -> list[float]:
    """Return sign · (log S − log T) of each completion, in nats."""
    views = [
        View({STUDENT: r.prompt_ids, TEACHER: prompt}, r.completion_ids, (), (), 0.0, n, 0)
        for n, (r, prompt) in enumerate(zip(rollouts, prompts, strict=True))
    ]
    with torch.no_grad():
        student_scores = score_views(policy, views, STUDENT, max_tokens=max_tokens, max_logits_per_chunk=1 << 24)
    by_role = score_roles(
        worker.teachers, views, {TEACHER: role.weights}, max_tokens=max_tokens, max_logits_per_chunk=1 << 24
    )
    pairs = zip(student_scores, by_role[TEACHER], strict=True)
    return [sign * float((s.target_N.double() - t.target_N.double()).sum()) for s, t in pairs if t is not None]


def _summary(
    indices: Sequence[tuple[int, int]],
    student_correct: Sequence[bool],
    teacher_correct: Sequence[bool],
    shifts: Sequence[Sequence[float]],
    student_rollouts: Sequence[Rollout],
    teacher_rollouts: Sequence[Rollout],
    skipped: Counter[str],
) -> TeacherGap:
    """Average over the completions of each problem, then over problems, with intervals over problems."""
    problems = sorted({g for g, _ in indices})
    max_completions = max(sum(1 for g, _ in indices if g == problem) for problem in problems)

    def each(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        rows = [[value for (g, _), value in zip(indices, values, strict=True) if g == problem] for problem in problems]
        return np.concatenate([average_per_problem([row]) for row in rows])

    def estimate(values: Sequence[float]) -> Estimate:
        return bootstrap(each(values), k=max_completions, seed=0)

    student, teacher = [float(x) for x in student_correct], [float(x) for x in teacher_correct]
    return TeacherGap(
        student=estimate(student),
        teacher=estimate(teacher),
        gap=paired_difference(each(student), each(teacher), k=max_completions, seed=0),
        shift_on_student=estimate(shifts[0]),
        shift_on_teacher=estimate(shifts[1]),
        per_token_on_student=sum(shifts[0]) / sum(len(r.completion_ids) for r in student_rollouts),
        per_token_on_teacher=sum(shifts[1]) / sum(len(r.completion_ids) for r in teacher_rollouts),
        problems=len(problems),
        completions=len(indices),
        skipped=skipped,
    )
