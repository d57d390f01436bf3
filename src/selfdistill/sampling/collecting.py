"""A step's groups: completions of the student, and of every other role that a method lets sample."""

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
    """Refuse a role that draws from what only a drawn step can tell; ``name`` is the method's.

    Raises:
        ConfigError: which role, context and field.
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
    """Everything that sampling needs: who draws, how much, and who judges."""

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
        """Judged completions of every example, from every source of the method; ``seed`` is the step's own.

        The ranks share the sampling and the judging, and every one of them gets all groups. ``prompts`` are the
        student's where they were rendered earlier.

        Raises:
            ConfigError: a role would draw from what only a drawn step can tell.
        """
        for example in examples:
            check_sources(self.method, self.templates, example, name=type(self.method).__name__)
        if not self.method.on_policy:
            return from_solutions(examples, self.chat, thinking=self.thinking)
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
        for source in sources:
            if source != STUDENT:
                groups = self.drawn_by(
                    source, groups, count=count, seed=derive(seed, source), version=version, ordinals=mine
                )
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
        """Judged completions of the student alone; with ``count`` 0 groups that are still empty."""
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
        """The groups with completions of one role besides, drawn under its weights from its context."""
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
