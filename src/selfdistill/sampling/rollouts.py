"""Rollout groups of a step: completions of every sampling role, sampled and verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import example_fields, missing_column, reference_text, role_prompt
from selfdistill.contexts.templates import HINDSIGHT, Template, may_show
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import ConfigError, DataError
from selfdistill.methods.base import Method
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import Sampler, SamplingParams, for_turns
from selfdistill.sampling.engines import Engines
from selfdistill.sampling.episodes import play
from selfdistill.seeds import derive
from selfdistill.tasks.judging import verify_all
from selfdistill.tasks.turns import environment_of
from selfdistill.tracking.progress import Interrupted, activity
from selfdistill.types import (
    STUDENT,
    Completion,
    Example,
    Rollout,
    RolloutGroup,
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
    fitted: list[Example] = []
    skipped: Counter[str] = Counter()
    longest = 0
    for example in examples:
        length = len(chat.encode(example.prompt, thinking=thinking))
        longest = max(longest, length)
        if length + max_tokens <= chat.window:
            fitted.append(example)
        else:
            skipped["prompt too long for the window"] += 1
    if not fitted:
        raise DataError(
            f"no prompt fits: the longest of {len(examples)} has {longest} tokens, completions may take {max_tokens}, "
            f"and the window of {chat.name} is {chat.window}; lower sampling.max_tokens or shorten the prompts"
        )
    return fitted, skipped


def longest_prompt(examples: Sequence[Example], chat: Chat, thinking: bool | None) -> int:
    """Tokens of the longest prompt; 0 without examples."""
    return max((len(chat.encode(example.prompt, thinking=thinking)) for example in examples), default=0)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Completions of some prompts, not verified yet."""

    prompts: Sequence[tuple[int, ...]]
    completions: Sequence[Sequence[Completion]]
    """One list for every prompt."""
    version: int = 0
    """Version of the weights that sampled them."""

    def select(self, indices: Sequence[int]) -> Sampled:
        """The prompts at these indices, with their completions."""
        return Sampled([self.prompts[i] for i in indices], [self.completions[i] for i in indices], self.version)

    def rollouts(
        self, chat: Chat, *, source: str = STUDENT, student_prompts: Sequence[tuple[int, ...]] | None = None
    ) -> list[tuple[Rollout, ...]]:
        """The completions of every prompt, decoded.

        ``source`` is the role that sampled them. For a role besides the student, ``student_prompts`` are the prompts
        under which the student is scored.
        """
        own = source == STUDENT
        return [
            tuple(
                Rollout(
                    prompt_ids=student_prompt,
                    completion_ids=completion.ids,
                    logprobs=completion.logprobs,
                    finished=completion.finished,
                    text=chat.decode(completion.ids),
                    policy_version=self.version,
                    source=source,
                    role_prompt_ids=None if own else prompt,
                )
                for completion in completions
            )
            for student_prompt, prompt, completions in zip(
                student_prompts or self.prompts, self.prompts, self.completions, strict=True
            )
        ]


def sample_and_verify(
    examples: Sequence[Example],
    task: Task,
    sampler: Sampler,
    chat: Chat,
    params: SamplingParams,
    *,
    thinking: bool | None = None,
    world: World = ALONE,
) -> list[RolloutGroup]:
    """Sample ``params.count`` completions of every example and verify them; returns one group per example.

    A task that is played in turns is played. Every rank of ``world`` then samples equally many turns.
    """
    environment = environment_of(task)
    if environment is not None:
        engine = for_turns(sampler)

        def sample(conversations: Sequence[tuple[int, ...]], turn_params: SamplingParams) -> list[list[Completion]]:
            with activity("sampling", len(conversations), "turns"):
                return engine.sample(conversations, turn_params)

        return play(examples, environment, sample, chat, params, thinking=thinking, world=world)
    prompts = [chat.encode(example.prompt, thinking=thinking) for example in examples]
    with activity("sampling", len(prompts) * params.count, "completions"):
        completions = sampler.sample(prompts, params)
    return verify(task, examples, Sampled(prompts, completions).rollouts(chat))


def verify(task: Task, examples: Sequence[Example], rollouts: Sequence[Sequence[Rollout]]) -> list[RolloutGroup]:
    """Judge the rollouts of every example, in one batch if the task can; returns one group per example."""
    pairs = list(zip(examples, rollouts, strict=True))
    completions = [(example, r.text, r.finished) for example, row in pairs for r in row]
    with activity("judging"):
        verdicts = iter(verify_all(task, completions, ids=[r.completion_ids for row in rollouts for r in row]))
    return [RolloutGroup(example, tuple(row), tuple(next(verdicts) for _ in row)) for example, row in pairs]


def add_rollouts(
    task: Task, groups: Sequence[RolloutGroup], rollouts: Sequence[Sequence[Rollout]]
) -> list[RolloutGroup]:
    """Verify further rollouts of each group's example and add them to the group."""
    added = verify(task, [group.example for group in groups], rollouts)
    return [
        RolloutGroup(group.example, group.rollouts + new.rollouts, group.verdicts + new.verdicts)
        for group, new in zip(groups, added, strict=True)
    ]


def gather_groups(groups: Sequence[RolloutGroup], examples: Sequence[Example], world: World) -> list[RolloutGroup]:
    """All-gather the groups: each rank has made those of its share of ``examples``."""
    # Examples are not sent: they may hold functions, and every rank has all of them.
    own = {index: (g.rollouts, g.verdicts) for index, g in zip(world.shard_indices(len(examples)), groups, strict=True)}
    parts = world.all_gather_by_index(own, len(examples))
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
    fitted: list[Example] = []
    skipped: Counter[str] = Counter()
    for example in examples:
        length = len(chat.encode(example.prompt, thinking=thinking)) + len(_response(example, chat)[1])
        if length <= chat.window:
            fitted.append(example)
        else:
            skipped["prompt and solution too long for the window"] += 1
    if not fitted:
        raise DataError(f"no prompt fits with its solution into the window of {chat.name}, {chat.window} tokens")
    return fitted, skipped


def _response(example: Example, chat: Chat) -> tuple[str, tuple[int, ...]]:
    text = reference_text(example)
    if text is None:
        raise DataError(f"example {example.id} has no solution to learn from: {missing_column(example, 'solution')}")
    return text, chat.response(text)


def check_sampling_roles(method: Method, templates: Mapping[str, Template], example: Example, *, name: str) -> None:
    """Refuse a sampling role whose context shows fields that exist only after sampling. ``name`` is the method's.

    Raises:
        ConfigError: names the role, the context and the field.
    """
    roles = method.roles()
    for role in method.sampling_roles():
        if role == STUDENT:
            continue
        if role not in roles:
            raise ConfigError(
                f"method {name!r} lets {role!r} sample completions, which is none of its roles: "
                f"{', '.join(sorted({STUDENT, *roles}))}"
            )
        context = roles[role].context
        if context is None or context not in templates:
            continue
        late = [
            field_name
            for field_name in may_show(templates, context)
            if field_name in HINDSIGHT and field_name not in example.fields
        ]
        if late:
            raise ConfigError(
                f"method {name!r} samples completions from its role {role!r}, whose context {context!r} may show "
                f"${late[0]}, which is not known before a step is sampled: name a context that shows fields of the "
                "example alone, such as $solution"
            )


@dataclass(frozen=True, slots=True)
class RolloutWorker:
    """Samples and verifies the rollout groups of a step."""

    task: Task
    method: Method
    templates: Mapping[str, Template]
    chat: Chat
    teachers: Teachers
    engines: Engines
    """Give a sampler of a role's weights."""
    sampler: Sampler
    """Samples the student's completions, in training and in evaluation."""
    params: SamplingParams
    """Parameters of every step, which only replaces the seed."""
    thinking: bool | None
    world: World = field(default_factory=World)

    def rollout(
        self,
        examples: Sequence[Example],
        *,
        seed: int,
        version: int,
        count: int | None = None,
        sampled: Sampled | None = None,
    ) -> list[RolloutGroup]:
        """Verified rollouts of every example, from every sampling role of the method; every rank gets all groups.

        Sampling and verification are split over the ranks. ``seed`` is the step's own. ``version`` of the weights is
        stored in every rollout. ``sampled`` are the student's completions of all examples if an engine has sampled
        them; their version then is the step's.

        Raises:
            ConfigError: the context of a sampling role shows fields that exist only after sampling.
        """
        # Refuse contexts that cannot be rendered before sampling.
        for example in examples:
            check_sampling_roles(self.method, self.templates, example, name=type(self.method).__name__)
        # Off-policy methods take the data's own responses as completions and sample nothing.
        if not self.method.on_policy:
            return from_solutions(examples, self.chat, thinking=self.thinking)
        # Sample and verify the student's completions of this rank's share of the examples.
        indices = self.world.shard_indices(len(examples))
        params = replace(self.params, count=count or self.params.count, seed=seed, ordinals=indices)
        share = [examples[i] for i in indices]
        # A task of turns is played by the student alone.
        environment = environment_of(self.task)
        if environment is not None:
            groups = play(
                share,
                environment,
                partial(self._sample, for_turns(self.sampler)),
                self.chat,
                params,
                thinking=self.thinking,
                version=version,
                world=self.world,
            )
            return gather_groups(groups, examples, self.world)
        groups = [RolloutGroup(example, (), ()) for example in share]
        roles = self.method.sampling_roles()
        if sampled is not None:
            groups = verify(self.task, share, sampled.select(indices).rollouts(self.chat))
            version = sampled.version
        elif STUDENT in roles:
            prompts = self.prompts(share)
            completions = self._sample(self.sampler, prompts, params)
            groups = verify(self.task, share, Sampled(prompts, completions, version).rollouts(self.chat))
        # Add the completions of the other sampling roles, each from its own context and weights.
        for role in roles:
            if role != STUDENT:
                groups = self._add_role(role, groups, replace(params, seed=derive(seed, role)), version)
        # All-gather the groups of all ranks.
        return gather_groups(groups, examples, self.world)

    def _sample(
        self, sampler: Sampler, prompts: Sequence[tuple[int, ...]], params: SamplingParams
    ) -> list[list[Completion]]:
        """Sample. If one rank was asked to stop meanwhile, all of them end here.

        Raises:
            Interrupted: a rank has left its sampling early.
        """
        interruption: Interrupted | None = None
        completions: list[list[Completion]] = []
        try:
            with activity("sampling", len(prompts) * params.count, "completions", may_stop=True):
                completions = sampler.sample(prompts, params)
        except Interrupted as interrupted:
            interruption = interrupted
        if self.world.max(int(interruption is not None)):
            raise interruption or Interrupted("another rank")
        return completions

    def prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """The student's prompts."""
        return [self.chat.encode(example.prompt, thinking=self.thinking) for example in examples]

    def _add_role(
        self, name: str, groups: Sequence[RolloutGroup], params: SamplingParams, version: int
    ) -> list[RolloutGroup]:
        """The groups with the completions that one role samples with its weights from its context.

        A group that the method wants no samples for, or whose context cannot be rendered, is unchanged.
        ``params.ordinals`` are the groups' indices in the step.
        """
        role = self.method.roles()[name]
        prompts: dict[int, tuple[int, ...]] = {}
        for i, group in enumerate(groups):
            if not self.method.samples_for(name, group):
                continue
            prompt = role_prompt(
                role,
                group.example,
                example_fields(group.example),
                self.templates,
                self.chat,
                thinking=self.thinking,
                room=params.max_tokens,
            )
            if not isinstance(prompt, Skipped):
                prompts[i] = prompt
        ordinals = params.ordinals or range(len(groups))
        params = replace(params, ordinals=[ordinals[i] for i in prompts])
        # Every rank calls the sampler, even without prompts, because it all-gathers sharded weights.
        with self.engines.sampler(self.teachers, role.weights) as sampler:
            sampled = Sampled([*prompts.values()], self._sample(sampler, [*prompts.values()], params), version)
        # A group's samples share the student's prompt, so that both sides of a pair are scored under the same one.
        student_prompts = [
            groups[i].rollouts[0].prompt_ids if groups[i].rollouts else self.prompts([groups[i].example])[0]
            for i in prompts
        ]
        rollouts = dict(
            zip(prompts, sampled.rollouts(self.chat, source=name, student_prompts=student_prompts), strict=True)
        )
        return add_rollouts(self.task, groups, [rollouts.get(i, ()) for i in range(len(groups))])
