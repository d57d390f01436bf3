"""Sample completions of examples and verify them: examples to rollout groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import World
from selfdistill.errors import DataError
from selfdistill.tasks.judging import verify_all
from selfdistill.types import Completion, Example, Rollout, RolloutGroup, Sampler, Skipped, Task, Verdict


def fitting(
    examples: Sequence[Example], chat: Chat, *, max_tokens: int, thinking: bool | None
) -> tuple[list[Example], Counter[str]]:
    """Examples whose prompt and longest completion fit the context window, and counts of the others by reason.

    Raises:
        DataError: no example fits.
    """
    kept: list[Example] = []
    skipped: Counter[str] = Counter()
    longest = 0
    for example in examples:
        length = len(chat.encode(example.prompt, thinking=thinking))
        longest = max(longest, length)
        if length + max_tokens <= chat.window:
            kept.append(example)
        else:
            skipped["prompt too long for the window"] += 1
    if not kept:
        raise DataError(
            f"no prompt fits: the longest of {len(examples)} has {longest} tokens, completions may take {max_tokens}, "
            f"and the window of {chat.name} is {chat.window}; lower sampling.max_tokens or shorten the prompts"
        )
    return kept, skipped


def collect(
    examples: Sequence[Example],
    task: Task,
    sampler: Sampler,
    chat: Chat,
    *,
    count: int,
    max_tokens: int,
    thinking: bool | None,
    seed: int,
    version: int,
    ordinals: Sequence[int] | None = None,
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> list[RolloutGroup]:
    """Sample ``count`` completions of every example and verify them; returns one group per example.

    ``version`` of the policy is stored in every rollout. ``ordinals`` are the indices of the examples in the whole
    step, of which these may be one rank's share. ``prompts`` are the examples' prompts if they were rendered earlier: a
    template may show the date, so rendering again could differ.
    """
    if prompts is None:
        prompts = [chat.encode(example.prompt, thinking=thinking) for example in examples]
    drawn: list[list[Completion]] = [[] for _ in prompts]
    if count:
        drawn = sampler.sample(prompts, count=count, max_tokens=max_tokens, seed=seed, ordinals=ordinals)
    made = [
        tuple(Rollout(prompt, c.ids, c.logprobs, c.finished, chat.decode(c.ids), version) for c in completions)
        for prompt, completions in zip(prompts, drawn, strict=True)
    ]
    judged = verify_rollouts(task, list(zip(examples, made, strict=True)))
    return [RolloutGroup(*parts) for parts in zip(examples, made, judged, strict=True)]


def verify_rollouts(task: Task, made: Sequence[tuple[Example, tuple[Rollout, ...]]]) -> list[tuple[Verdict, ...]]:
    """The verdicts on every example's rollouts, in one batch if the task can."""
    asked = [(example, rollout.text, rollout.finished) for example, rollouts in made for rollout in rollouts]
    found = iter(verify_all(task, asked))
    return [tuple(next(found) for _ in rollouts) for _, rollouts in made]


def extend(
    groups: Sequence[RolloutGroup],
    prompts: Sequence[tuple[int, ...] | Skipped],
    source: str,
    task: Task,
    sampler: Sampler,
    chat: Chat,
    *,
    count: int,
    max_tokens: int,
    thinking: bool | None,
    seed: int,
    version: int,
    ordinals: Sequence[int] | None = None,
) -> list[RolloutGroup]:
    """Add ``count`` verified completions to each group, sampled by role ``source`` from its own prompts.

    A group whose prompt is skipped is unchanged. ``ordinals`` are the groups' indices in the whole step.
    """
    places = range(len(groups)) if ordinals is None else ordinals
    shown = {n: prompt for n, prompt in zip(places, prompts, strict=True) if not isinstance(prompt, Skipped)}
    # Every rank calls the sampler, even without prompts, because it all-gathers sharded weights.
    drawn = iter(sampler.sample([*shown.values()], count=count, max_tokens=max_tokens, seed=seed, ordinals=[*shown]))
    made: list[tuple[Rollout, ...]] = []
    for group, prompt in zip(groups, prompts, strict=True):
        if isinstance(prompt, Skipped):
            made.append(())
            continue
        # The group's samples share the student's prompt too, so that both sides of a pair are scored under the same.
        student = next((one.prompt_ids for one in group.rollouts), None)
        if student is None:
            student = chat.encode(group.example.prompt, thinking=thinking)
        made.append(
            tuple(
                Rollout(student, c.ids, c.logprobs, c.finished, chat.decode(c.ids), version, source, prompt)
                for c in next(drawn)
            )
        )
    judged = verify_rollouts(task, [(group.example, rollouts) for group, rollouts in zip(groups, made, strict=True)])
    return [
        RolloutGroup(group.example, group.rollouts + rollouts, group.verdicts + verdicts)
        for group, rollouts, verdicts in zip(groups, made, judged, strict=True)
    ]


def everyones(groups: Sequence[RolloutGroup], examples: Sequence[Example], world: World) -> list[RolloutGroup]:
    """All-gather the groups: each rank has made those of its share of ``examples``."""
    # Examples are not sent: they may hold functions, and every rank has all of them.
    made = {place: (g.rollouts, g.verdicts) for place, g in zip(world.share(len(examples)), groups, strict=True)}
    parts = world.merge(made, len(examples))
    return [RolloutGroup(example, *part) for example, part in zip(examples, parts, strict=True)]


def from_solutions(examples: Sequence[Example], chat: Chat, *, thinking: bool | None) -> list[RolloutGroup]:
    """Groups with the data's own response as the only completion, for methods that do not sample.

    The response is the field ``response``, or ``solution`` without one. Its log-probabilities are NaN.

    Raises:
        DataError: an example has neither field.
    """
    groups = []
    for example in examples:
        text, ids = _response(example, chat)
        unknown = (float("nan"),) * len(ids)
        rollout = Rollout(chat.encode(example.prompt, thinking=thinking), ids, unknown, True, text, 0)
        groups.append(RolloutGroup(example, (rollout,), (Verdict(None),)))
    return groups


def fitting_solutions(
    examples: Sequence[Example], chat: Chat, *, thinking: bool | None
) -> tuple[list[Example], Counter[str]]:
    """Examples whose prompt and response fit the context window, and counts of the others by reason.

    Raises:
        DataError: an example has no response, or no example fits.
    """
    kept: list[Example] = []
    skipped: Counter[str] = Counter()
    for example in examples:
        length = len(chat.encode(example.prompt, thinking=thinking)) + len(_response(example, chat)[1])
        if length <= chat.window:
            kept.append(example)
        else:
            skipped["prompt and solution too long for the window"] += 1
    if not kept:
        raise DataError(f"no prompt fits with its solution into the window of {chat.name}, {chat.window} tokens")
    return kept, skipped


def _response(example: Example, chat: Chat) -> tuple[str, tuple[int, ...]]:
    text = example.fields.get("response", example.fields.get("solution"))
    if text is None:
        raise DataError(f"example {example.id} has no solution to learn from: map a column to 'solution'")
    return text, chat.response(text)
