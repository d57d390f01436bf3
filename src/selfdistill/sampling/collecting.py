"""Rollout groups of a step: sampled by the student and by every other role that a method samples from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import role_prompt
from selfdistill.contexts.templates import HINDSIGHT, Template, may_show
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError
from selfdistill.methods.base import Method
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.hf import Decoding, HFSampler
from selfdistill.sampling.memory import Rows
from selfdistill.sampling.rollouts import collect, everyones, extend, from_solutions
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Example, RolloutGroup, Sampler, Task


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
