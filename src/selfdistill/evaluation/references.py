"""Likelihood of held-out references, and distance of a teacher from the student: numbers that need no verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.config.sections import Limits
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import reference_text, role_prompt
from selfdistill.contexts.templates import Template
from selfdistill.distributed.world import ALONE, World
from selfdistill.evaluation.statistics import Estimate, bootstrap
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.score import score_roles
from selfdistill.types import STUDENT, Role, RolloutGroup, Scores, Skipped, View
from selfdistill.types.conversation import with_gaps

TEACHER = "teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceScorer:
    """Scores the references of held-out problems under the student and, if a method has one, its teacher."""

    teachers: Teachers
    chat: Chat
    limits: Limits
    thinking: bool | None
    teacher: Role | None = None
    templates: Mapping[str, Template]
    world: World = ALONE

    def measure(self, groups: Sequence[RolloutGroup]) -> dict[str, Estimate]:
        """Return the estimates of :meth:`values` by name, with intervals over problems of equal weight."""
        return {name: bootstrap(numbers, k=1, seed=0) for name, numbers in self.values(groups).items()}

    def values(self, groups: Sequence[RolloutGroup]) -> dict[str, list[float]]:
        """Return one number per problem, by name. All are in nats per token.

        - ``loglikelihood``: mean log-probability of the reference's tokens under the student.
        - ``teacher_gap``: how much larger it is under the teacher, who sees the context.
        - ``teacher_shift``: log S − log T of the student's own first completion, an estimate of KL(S‖T).

        A number is left out where no problem has a reference that fits, or no context can be rendered before a step.
        """
        # The reference of each problem and the first completion, each as one view under both prompts.
        views: list[View] = []
        for n, group in enumerate(groups):
            text = reference_text(group.example)
            prompt = self.chat.encode(group.example.prompt, thinking=self.thinking)
            reference_ids = () if text is None else self.chat.response(text)
            if len(prompt) + len(reference_ids) > self.chat.window:
                reference_ids = ()
            first = group.rollouts[0] if self.teacher is not None and group.rollouts else None
            # The teacher is shown the example's prompt, so an episode with another opening is not compared.
            sampled_ids = first.completion_ids if first and first.prompt_ids == prompt else ()
            for index, ids in enumerate((reference_ids, sampled_ids)):
                gaps = first.gaps if first and index else ()
                if ids:
                    prompts = self._prompts(group, prompt, len(with_gaps(ids, gaps)))
                    gaps_of_roles = dict.fromkeys(prompts, gaps)
                    views.append(View(prompts, ids, (), (), 0.0, n, index, gaps=gaps_of_roles))
        if not views:
            return {}
        weights = {STUDENT: Role(None).weights} | ({} if self.teacher is None else {TEACHER: self.teacher.weights})
        scores = score_roles(
            self.teachers,
            views,
            weights,
            temperatures={} if self.teacher is None else {TEACHER: self.teacher.temperature},
            max_tokens=self.limits.max_tokens_per_microbatch,
            max_logits_per_chunk=self.limits.max_logits_per_chunk,
            world=self.world,
        )
        self.teachers.release()
        # One number per problem: means over tokens, and over what both roles have scored for the differences.
        students, teachers = scores[STUDENT], scores.get(TEACHER, [None] * len(views))
        rows = [(v.index, _mean(s), _mean(t)) for v, s, t in zip(views, students, teachers, strict=True)]
        values = {
            "loglikelihood": [s for index, s, _ in rows if index == 0 and s is not None],
            "teacher_gap": [t - s for index, s, t in rows if index == 0 and s is not None and t is not None],
            "teacher_shift": [s - t for index, s, t in rows if index == 1 and s is not None and t is not None],
        }
        return {name: numbers for name, numbers in values.items() if numbers}

    def _prompts(self, group: RolloutGroup, prompt: tuple[int, ...], room: int) -> dict[str, tuple[int, ...]]:
        if self.teacher is None:
            return {STUDENT: prompt}
        fields = group.example.fields
        teacher_prompt = role_prompt(
            self.teacher, group.example, fields, self.templates, self.chat, thinking=self.thinking, room=room
        )
        return {STUDENT: prompt} if isinstance(teacher_prompt, Skipped) else {STUDENT: prompt, TEACHER: teacher_prompt}


def _mean(scores: Scores | None) -> float | None:
    return None if scores is None else float(scores.target_N.double().mean())
