"""Metrics of a step besides the loss: budget, rewards, lengths, completions without signal, u of right and wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfdistill.contexts.chat import Chat
from selfdistill.evaluation.words import deliberation_pattern, mentions_unseen
from selfdistill.files.jsonl import JsonLines
from selfdistill.files.records import Budget, RolloutLine, flatten
from selfdistill.methods.base import Method
from selfdistill.tasks.judge import judge_counts
from selfdistill.tasks.reward import function_rewards
from selfdistill.training.trainer import StepResult
from selfdistill.types import STUDENT, Rollout, RolloutGroup, StepRecord, View
from selfdistill.types.conversation import DONE


def budget_of(groups: Sequence[RolloutGroup], views: Sequence[View], method: Method, *, updates: int) -> Budget:
    """The budget that a step spent on these groups and their views. ``updates`` is the number of optimiser updates.

    The teachers are scored anew for every update. The student's own pass is its training, unless the method asks for
    its scores before the loss.
    """
    # The rollouts of a method that is not on-policy are given solutions, which were not sampled.
    rollouts = [rollout for group in groups for rollout in group.rollouts if method.on_policy]
    completions = Counter(rollout.source for rollout in rollouts)
    generated = Counter[str]()
    for rollout in rollouts:
        generated[rollout.source] += len(rollout.completion_ids)
    scored = Counter[str]()
    for role in dict.fromkeys([*method.precompute(), *method.compared()]):
        scored[role] = updates * sum(len(view.completion_ids) for view in views if role in view.prompts)
    trained = updates * sum(weight != 0 for view in views for weight in view.weights)
    return Budget(dict(completions), dict(generated), dict(+scored), trained)


def callback_record(record: StepRecord, line: Mapping[str, Any]) -> StepRecord:
    """The record for the user's callback: adds the seconds and all scalars of the step's metrics line."""
    values = {key: value for key, value in line.items() if not isinstance(value, dict | list)}
    return replace(record, values={**record.values, **values}, seconds=line["phase_seconds"])


def step_line(groups: Sequence[RolloutGroup], result: StepResult, method: Method, *, updates: int) -> dict[str, Any]:
    """The step's line of ``metrics.jsonl``, without its seconds. ``updates`` is the number of optimiser updates."""
    line = flatten(result.record)
    budget = budget_of(groups, result.views, method, updates=updates)
    line["generated"] = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
    line["budget"] = budget.to_json()
    line.update(rollout_metrics(groups, STUDENT))
    for source in method.sampling_roles():
        if source != STUDENT:
            line.update({f"{source}_{name}": value for name, value in rollout_metrics(groups, source).items()})
    line.update(signal_shares(groups, result, needs_rewards=method.needs_rewards()))
    line.update(separation(result))
    return line


def rollout_metrics(groups: Sequence[RolloutGroup], source: str) -> dict[str, Any]:
    """Mean reward, share right, length in tokens, share truncated, deliberation words and leaks of one role's samples.

    A leak is a completion that mentions a reference text which its problem does not mention.
    A number is None without samples, or without a judged one. ``reward_low`` and ``reward_high`` are the ends of the
    rewards; ``reward_<function>`` is the mean of one function where several judge; ``judge_asked`` … count requests,
    ``unchecked`` the answers that a verifier gave up, where there are any. Of roles besides the student, which may
    sample for some problems only, completions and tokens are counted too.
    """
    pairs = [pair for g in groups for pair in zip(g.rollouts, g.verdicts, strict=True) if pair[0].source == source]
    rewards = [verdict.reward for _, verdict in pairs if verdict.reward is not None]
    by_function: dict[str, list[float]] = {}
    for _, verdict in pairs:
        for name, reward in function_rewards(verdict).items():
            by_function.setdefault(f"reward_{name}", []).append(reward)
    prompts = [" ".join(m.content for m in g.example.prompt) for g in groups for r in g.rollouts if r.source == source]
    # The data's own responses have no log-probabilities of a sampler. They are not checked for leaks.
    was_sampled = [not any(map(math.isnan, rollout.logprobs)) for rollout, _ in pairs]
    leaks = [
        mentions_unseen(r.text, prompt)
        for (r, _), prompt, sampled in zip(pairs, prompts, was_sampled, strict=True)
        if sampled
    ]
    tokens = sum(len(r.completion_ids) for r, _ in pairs)
    unchecked = sum("unchecked" in verdict.details for _, verdict in pairs)
    words = sum(len(deliberation_pattern().findall(rollout.text)) for rollout, _ in pairs)
    return {
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "reward_low": min(rewards, default=None),
        "reward_high": max(rewards, default=None),
        "success": sum(verdict.correct for _, verdict in pairs) / len(rewards) if rewards else None,
        **{name: sum(given) / len(given) for name, given in by_function.items()},
        **judge_counts([verdict.details for _, verdict in pairs]),
        **({"unchecked": unchecked} if unchecked else {}),
        "length": tokens / len(pairs) if pairs else None,
        "truncated": sum(not r.finished for r, _ in pairs) / len(pairs) if pairs else None,
        "deliberation": words / len(pairs) if pairs else None,
        "leak": sum(leaks) / len(leaks) if leaks else None,
        **episode_metrics([rollout for rollout, _ in pairs]),
        **({} if source == STUDENT else {"completions": len(pairs), "generated": tokens}),
    }


def episode_metrics(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Mean turns of an episode, mean tokens that its environment said, and counts of why episodes ended.

    ``unended`` is the share of episodes that the environment did not end, ``tool_errors`` the share of turns answered
    with an error, if the environment says so of any. Empty without episodes.
    """
    episodes = [rollout.episode for rollout in rollouts if rollout.episode]
    if not episodes:
        return {}
    said = sum(len(turn.ids) for episode in episodes for turn in episode.turns)
    errors = [turn.error for episode in episodes for turn in episode.turns if turn.error is not None]
    return {
        "turns": sum(len(episode.turns) for episode in episodes) / len(episodes),
        "environment_tokens": said / len(episodes),
        "unended": sum(episode.ended != DONE for episode in episodes) / len(episodes),
        **({"tool_errors": sum(errors) / len(errors)} if errors else {}),
        "ended": {reason: float(n) for reason, n in sorted(Counter(e.ended for e in episodes).items())},
    }


def signal_shares(
    groups: Sequence[RolloutGroup], result: StepResult, *, needs_rewards: bool
) -> dict[str, float | None]:
    """Share of completions left out of the loss, and of groups without a training signal.

    A group has a signal when one of its turns has a nonzero advantage or is scored by a teacher. If the method
    needs no rewards, every scored completion is a signal.
    """
    sampled = sum(len(group.rollouts) for group in groups)
    with_signal = {
        view.group for view in result.views if any(view.token_advantages) or len(view.prompts) > 1 or not needs_rewards
    }
    return {
        "left_out": 1 - len(result.views) / sampled if sampled else None,
        "no_signal": 1 - len(with_signal) / len(groups) if groups else None,
    }


def separation(result: StepResult) -> dict[str, float | None]:
    """Mean u in nats per token of the student's correct and wrong completions; empty without a scored teacher."""
    student, teacher = result.scores.get(STUDENT), result.scores.get("teacher")
    if student is None or teacher is None:
        return {}
    totals = {"u_correct": [0.0, 0.0], "u_wrong": [0.0, 0.0]}
    for view, own, other in zip(result.views, student, teacher, strict=True):
        if own is None or other is None or view.reward is None or view.source != STUDENT:
            continue
        total = totals["u_correct" if view.correct else "u_wrong"]
        total[0] += float((other.target_N - own.target_N).double().sum())
        total[1] += len(view.completion_ids)
    return {name: total / tokens if tokens else None for name, (total, tokens) in totals.items()}


def keep_batch(file: JsonLines, groups: Sequence[RolloutGroup], step: int, chat: Chat) -> None:
    """Write the completions of a step that failed, and so has no result."""
    file.append(*(line.to_json() for line in rollout_lines(groups, StepResult(StepRecord(step), []), chat)))


def rollout_lines(groups: Sequence[RolloutGroup], result: StepResult, chat: Chat) -> Iterator[RolloutLine]:
    """The lines of ``rollouts.jsonl``, one for every completion of the step."""
    index_of = {(view.group, view.index): n for n, view in enumerate(result.views)}
    students, teachers = result.scores.get(STUDENT), result.scores.get("teacher")
    for g, group in enumerate(groups):
        for i, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
            n = index_of.get((g, i))
            student = students[n] if students and n is not None else None
            teacher = teachers[n] if teachers and n is not None else None
            yield RolloutLine(
                example=group.example.id,
                prompt=group.example.prompt[-1].content,
                text=rollout.text,
                ids=rollout.completion_ids,
                step=result.record.step,
                index=i,
                source=rollout.source,
                tokens=tuple(chat.tokens(rollout.completion_ids)),
                logprobs=tuple(round(number, 6) for number in rollout.logprobs),
                finished=rollout.finished,
                policy_version=rollout.policy_version,
                reward=verdict.reward,
                correct=verdict.correct if verdict.reward is not None else None,
                rewards=function_rewards(verdict) or None,
                feedback=verdict.feedback,
                episode=rollout.episode,
                u=tuple(round(u, 5) for u in (teacher.target_N - student.target_N).tolist())
                if student is not None and teacher is not None
                else None,
            )
