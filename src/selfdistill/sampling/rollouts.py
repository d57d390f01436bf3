"""Rollout groups of a step: completions of every sampling role, sampled and verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import role_prompt
from selfdistill.contexts.templates import HINDSIGHT, Template, may_show
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError, DataError
from selfdistill.methods.base import Method
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.hf import Decoding, HFSampler
from selfdistill.sampling.memory import Rows
from selfdistill.seeds import derive
from selfdistill.tasks.judging import verify_all
from selfdistill.types import (
    STUDENT,
    Completion,
    Example,
    Rollout,
    RolloutGroup,
    Sampler,
    Skipped,
    Task,
    Verdict,
)


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


def check_sources(method: Method, templates: Mapping[str, Template], example: Example, *, name: str) -> None:
    """Refuse a sampling role whose context shows fields that exist only after sampling. ``name`` is the method's.

    Raises:
        ConfigError: names the role, the context and the field.
    """
    roles = method.roles()
    for source in method.sources():
        if source == STUDENT:
            continue
        if source not in roles:
            raise ConfigError(
                f"method {name!r} lets {source!r} draw completions, which is none of its roles: "
                f"{', '.join(sorted({STUDENT, *roles}))}"
            )
        context = roles[source].context
        if context is None or context not in templates:
            continue
        late = [one for one in may_show(templates, context) if one in HINDSIGHT and one not in example.fields]
        if late:
            raise ConfigError(
                f"method {name!r} draws completions from its role {source!r}, whose context {context!r} may show "
                f"${late[0]}, which is not known before a step is drawn: name a context that shows fields of the "
                "example alone, such as $solution"
            )


@dataclass(frozen=True, slots=True)
class Collector:
    """Samples and verifies the rollout groups of a step."""

    task: Task
    method: Method
    templates: Mapping[str, Template]
    chat: Chat
    sampler: Sampler
    teachers: Teachers
    decoding: Decoding
    completions: int
    max_tokens: int
    max_rows: Rows
    thinking: bool | None
    world: World = field(default_factory=World)

    def groups(
        self,
        examples: Sequence[Example],
        *,
        seed: int,
        version: int,
        completions: int | None = None,
        prompts: Sequence[tuple[int, ...]] | None = None,
    ) -> list[RolloutGroup]:
        """Verified rollouts of every example, from every sampling role of the method; every rank gets all groups.

        Sampling and verification are split over the ranks. ``seed`` is the step's own. ``prompts`` are the student's
        prompts if they were rendered earlier.

        Raises:
            ConfigError: the context of a sampling role shows fields that exist only after sampling.
        """
        # Refuse contexts that cannot be rendered before sampling.
        for example in examples:
            check_sources(self.method, self.templates, example, name=type(self.method).__name__)
        # Off-policy methods take the data's own responses as completions and sample nothing.
        if not self.method.on_policy:
            return from_solutions(examples, self.chat, thinking=self.thinking)
        # Sample and verify the student's completions of this rank's share of the examples.
        count = completions or self.completions
        sources = self.method.sources()
        mine = self.world.share(len(examples))
        groups = self.student_groups(
            [examples[i] for i in mine],
            count=count if STUDENT in sources else 0,
            seed=seed,
            version=version,
            ordinals=mine,
            prompts=None if prompts is None else [prompts[i] for i in mine],
        )
        # Add the completions of the other sampling roles, each from its own context and weights.
        for source in sources:
            if source != STUDENT:
                groups = self.drawn_by(
                    source, groups, count=count, seed=derive(seed, source), version=version, ordinals=mine
                )
        # All-gather the groups of all ranks.
        return everyones(groups, examples, self.world)

    def student_groups(
        self,
        examples: Sequence[Example],
        *,
        count: int,
        seed: int,
        version: int,
        ordinals: Sequence[int] | None = None,
        prompts: Sequence[tuple[int, ...]] | None = None,
    ) -> list[RolloutGroup]:
        """Verified completions of the student only. With ``count`` 0 the groups are empty."""
        return collect(
            examples,
            self.task,
            self.sampler,
            self.chat,
            count=count,
            max_tokens=self.max_tokens,
            thinking=self.thinking,
            seed=seed,
            version=version,
            ordinals=ordinals,
            prompts=prompts,
        )

    def drawn_by(
        self,
        source: str,
        groups: Sequence[RolloutGroup],
        *,
        count: int,
        seed: int,
        version: int,
        ordinals: Sequence[int] | None = None,
    ) -> list[RolloutGroup]:
        """The groups, each extended by completions that one role samples with its weights from its context."""
        role = self.method.roles()[source]
        prompts = [
            role_prompt(
                role,
                group.example,
                group.example.fields,
                self.templates,
                self.chat,
                thinking=self.thinking,
                room=self.max_tokens,
            )
            for group in groups
        ]
        with self.teachers.weights(role.weights) as policy:
            sampler = HFSampler(policy, stop_ids=self.chat.stop_ids, decoding=self.decoding, max_rows=self.max_rows)
            return extend(
                groups,
                prompts,
                source,
                self.task,
                sampler,
                self.chat,
                count=count,
                max_tokens=self.max_tokens,
                thinking=self.thinking,
                seed=seed,
                version=version,
                ordinals=ordinals,
            )
