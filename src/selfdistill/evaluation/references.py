"""Likelihood of held-out references, and distance of a teacher from the student: numbers that need no verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfdistill.config.sections import Limits
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import example_fields, reference_text, role_conversation, role_prompt, turn_replies
from selfdistill.contexts.templates import Template
from selfdistill.distributed.world import ALONE, World
from selfdistill.evaluation.statistics import Estimate, bootstrap
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.score import score_roles
from selfdistill.types import STUDENT, Episode, Example, Role, Rollout, RolloutGroup, Scores, Skipped, View
from selfdistill.types.conversation import Conversation

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
        - ``teacher_shift``: log S − log T of the student's own first completion, an estimate of KL(S‖T). Of an episode
          the teacher reads the conversation with what the environment said, as in training.

        A number is left out where no problem has a reference that fits, or no context can be rendered before a step.
        """
        # The reference of each problem and the first completion, each as one view under both prompts.
        views: list[View] = []
        for n, group in enumerate(groups):
            text = reference_text(group.example)
            prompt = self.chat.encode(group.example.prompt, thinking=self.thinking)
            reference_ids = () if text is None else self.chat.response(text)
            if reference_ids and len(prompt) + len(reference_ids) <= self.chat.window:
                prompts = {STUDENT: prompt, **self._shown(group.example, len(reference_ids))}
                views.append(View(prompts, reference_ids, (), (), 0.0, n, 0))
            first = group.rollouts[0] if self.teacher is not None and group.rollouts else None
            if first is not None and first.episode is not None:
                views.append(self._of_episode(group.example, first, first.episode, n))
            elif first is not None and first.prompt_ids == prompt:
                prompts = {STUDENT: prompt, **self._shown(group.example, len(first.completion_ids))}
                views.append(View(prompts, first.completion_ids, (), (), 0.0, n, 1))
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

    def _shown(self, example: Example, room: int) -> dict[str, tuple[int, ...]]:
        """The teacher's prompt; empty if there is no teacher, or if it cannot be rendered before a step."""
        if self.teacher is None:
            return {}
        fields = example_fields(example)
        ids = role_prompt(self.teacher, example, fields, self.templates, self.chat, thinking=self.thinking, room=room)
        return {} if isinstance(ids, Skipped) else {TEACHER: ids}

    def _of_episode(self, example: Example, rollout: Rollout, episode: Episode, group: int) -> View:
        """An episode under the student's conversation, and under the teacher's if that can be rendered."""
        assert self.teacher is not None
        opened, fields = replace(example, prompt=episode.opening), example_fields(example)
        read = role_conversation(
            self.teacher,
            opened,
            rollout,
            fields,
            self.templates,
            self.chat,
            thinking=self.thinking,
            turn_fields=turn_replies(episode),
        )
        prompts, gaps = {STUDENT: rollout.prompt_ids}, {STUDENT: rollout.gaps}
        if isinstance(read, Conversation):
            prompts[TEACHER], gaps[TEACHER] = read.ids, read.gaps
        elif not isinstance(read, Skipped):
            prompts[TEACHER], gaps[TEACHER] = read, rollout.gaps
        return View(prompts, rollout.completion_ids, (), (), 0.0, group, 1, gaps=gaps)


def _mean(scores: Scores | None) -> float | None:
    return None if scores is None else float(scores.target_N.double().mean())
