"""The record types of a training step, from a row of data to a line of metrics.

    Example ── sampled ──> Rollout ── verified ──> RolloutGroup ── contexts ──> View ── packed ──> SequenceBatch

A rollout keeps its token ids, so no later stage tokenises text again.
Axis letters on tensors: ``B`` sequences, ``L`` length, ``N`` scored tokens, ``K`` top-k, ``V`` vocabulary, ``D``
hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from selfdistill.types.batches import AttentionGroup as AttentionGroup
from selfdistill.types.batches import Layout as Layout
from selfdistill.types.batches import SequenceBatch as SequenceBatch
from selfdistill.types.conversation import Episode as Episode
from selfdistill.types.conversation import Gaps, gaps_of, segments_of, turn_numbers, with_gaps
from selfdistill.types.conversation import Message as Message
from selfdistill.types.conversation import Reply as Reply
from selfdistill.types.conversation import Start as Start
from selfdistill.types.conversation import Turn as Turn
from selfdistill.types.weights import External as External
from selfdistill.types.weights import RoutedPrompt as RoutedPrompt
from selfdistill.types.weights import Server as Server
from selfdistill.types.weights import Snapshot as Snapshot
from selfdistill.types.weights import Weights as Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """A problem: the student's prompt, and the texts that contexts may show in hindsight."""

    id: str
    prompt: tuple[Message, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    """Texts for context templates by name: ``solution`` if the data has one, and every other mapped column."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The raw row, for verifiers and reward functions."""
    redraw: Callable[[int], Example] | None = field(default=None, compare=False, repr=False)
    """Returns the problem in its form of an epoch, for example with answer options in another order."""

    def in_epoch(self, epoch: int) -> Example:
        """The problem in its form of an epoch of training, counted from 0."""
        return self if self.redraw is None else self.redraw(epoch)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's result for one completion."""

    reward: float | None
    """None if the verifier does not judge the completion, which then takes no part in group statistics."""
    answer: str | None = None
    """Canonical form of the final answer, equal for equal answers (maj@k votes with it); None without an answer."""
    feedback: str | None = None
    """The environment's text about a failure, or None."""
    details: Mapping[str, float] = field(default_factory=dict)
    success: bool | None = None
    """Whether the completion counts as right; None: if it earned the full reward of 1."""

    @property
    def correct(self) -> bool:
        """Whether the completion is right. Whatever says "correct" asks here; one without a reward is not."""
        return self.reward is not None and (self.reward >= 1.0 if self.success is None else self.success)


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled completion."""

    ids: tuple[int, ...]
    """Token ids, stop id included."""
    logprobs: tuple[float, ...]
    """Log-probability of each token at temperature 1."""
    finished: bool
    """False if the token limit truncated the completion."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its prompt. That of an episode holds the model's own tokens of all turns, and nothing else.

    Example: ``Rollout(prompt_ids=(1, 40, 41), completion_ids=(7, 9, 2), logprobs=(-0.1, -1.2, 0.0), finished=True,
    text="so 24", policy_version=12)``.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    text: str
    policy_version: int
    source: str = "student"
    """The role that sampled it. ``prompt_ids`` is the student's prompt also for other roles."""
    role_prompt_ids: tuple[int, ...] | None = None
    """The prompt of the role that sampled it, if not the student. That role is scored under these ids."""
    episode: Episode | None = None
    """The turns of an episode; None for a single answer."""

    @property
    def gaps(self) -> Gaps:
        """What the environment said between the turns, as token ids; empty for a single answer."""
        return gaps_of(self.episode.turns) if self.episode else ()

    @property
    def ids_after_prompt(self) -> tuple[int, ...]:
        """All token ids after the prompt, what the environment said included, exactly as they were sampled from."""
        return with_gaps(self.completion_ids, self.gaps)

    @property
    def segments(self) -> tuple[int, ...]:
        """The turn of each of ``ids_after_prompt``, from 1; 0 for ids that are not the model's own."""
        return segments_of(len(self.completion_ids), self.gaps)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All rollouts of one example, with one verdict each."""

    example: Example
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]
    contexts: str | None = field(default=None, compare=False, repr=False)
    """Name of the context file of the task that verified them, or None."""

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.verdicts):
            raise ValueError(
                f"{len(self.rollouts)} rollouts but {len(self.verdicts)} verdicts for example {self.example.id}"
            )


@dataclass(frozen=True, slots=True)
class Skipped:
    """Returned in place of a context's prompt that could not be rendered. The reason is counted and reported."""

    context: str
    missing: tuple[str, ...] = ()
    """Fields that its text shows and that the completion does not have; empty if the prompt does not fit the window."""
    tried: tuple[str, ...] = ()
    """The templates of a ``first_of``, none of which could be rendered; ``missing`` holds the fields of all of them."""

    @property
    def reason(self) -> str:
        """The reason in words, as counts of skipped contexts show it."""
        if self.tried:
            return f"context {self.context}: none of {', '.join(self.tried)} can be rendered"
        if self.missing:
            return f"context {self.context}: no {' and no '.join(self.missing)}"
        return f"context {self.context}: prompt and completion do not fit the window"


@dataclass(frozen=True, slots=True)
class View:
    """One completion under the prompts of several roles."""

    prompts: Mapping[str, tuple[int, ...]]
    """Prompt ids by role. ``"student"`` is always among the roles."""
    completion_ids: tuple[int, ...]
    weights: tuple[float, ...]
    """Weight of each token in the loss; 0 leaves it out."""
    old_logprobs: tuple[float, ...]
    """Log-probability of each token when it was sampled."""
    advantage: float
    """Group advantage of the completion."""
    group: int
    """Index of the rollout group in the step."""
    index: int
    """Index of the rollout in its group."""
    source: str = "student"
    """The role that sampled the completion."""
    reward: float | None = None
    correct: bool = False
    """Whether the completion is right, by its verdict."""
    pass_rate: float | None = None
    """Share of right ones among the student's judged completions of the group, those left out of the loss included;
    None where none was judged."""
    gaps: Mapping[str, Gaps] = field(default_factory=dict)
    """What stands between the turns of an episode, by role; empty for a single answer. It is read and not scored."""
    turn_advantages: tuple[float, ...] = ()
    """The advantage of each turn; empty: every turn has the completion's."""

    def ids_after(self, role: str) -> tuple[int, ...]:
        """All token ids after a role's prompt: the scored ones, and what stands between the turns."""
        return with_gaps(self.completion_ids, self.gaps.get(role, ()))

    def places(self, role: str) -> list[int]:
        """The index of each scored token in :meth:`ids_after`."""
        return [n for n, turn in enumerate(segments_of(len(self.completion_ids), self.gaps.get(role, ()))) if turn]

    @property
    def turns(self) -> tuple[int, ...]:
        """The turn of each scored token, from 1."""
        return turn_numbers(len(self.completion_ids), self.gaps.get("student", ()))

    @property
    def token_advantages(self) -> tuple[float, ...]:
        """The advantage of each scored token: that of its turn, or else the completion's."""
        if not self.turn_advantages:
            return (self.advantage,) * len(self.completion_ids)
        return tuple(self.turn_advantages[turn - 1] for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-token numbers of one role, detached: log-probability of the token, entropy of the distribution, in nats."""

    target_N: Tensor
    entropy_N: Tensor

    @property
    def logprobs(self) -> Tensor:
        """Log-probability [N] of each token: ``target_N`` by a plain name."""
        return self.target_N

    @property
    def entropies(self) -> Tensor:
        """Entropy [N] of the distribution that each token was taken from: ``entropy_N`` by a plain name."""
        return self.entropy_N

    def alone(self) -> Scores:
        """A CPU copy that does not keep the whole batch's storage alive."""
        return Scores(self.target_N.cpu().clone(), self.entropy_N.cpu().clone())


@dataclass(frozen=True, slots=True)
class RoleSums:
    """Sums over the tokens that the student and a role both scored."""

    tokens: int
    """Number of tokens."""
    entropy: float
    """Entropy of the role's distributions, in nats."""
    u: float | None = None
    """u = log T(y) − log S(y), in nats; None for the student itself."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Metrics of one step, over all ranks. With several updates, loss and norm are those of the last one."""

    step: int
    loss: float = 0.0
    """Weighted mean over tokens, before the update."""
    grad_norm: float = 0.0
    """Norm of the gradient, before clipping."""
    weight: float = 0.0
    """Sum of the token weights."""
    tokens: int = 0
    """Completion tokens in the loss."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Contexts and completions that were left out, by reason."""
    roles: Mapping[str, RoleSums] = field(default_factory=dict)
    """Sums by role, the student among them."""
    values: Mapping[str, float | bool | str | None] = field(default_factory=dict)
    """Other numbers by name: the learning rate and what the method measures. A callback of a run finds every single
    number of the step's line in ``metrics.jsonl`` here."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by phase, filled by the run."""


class Task(Protocol):
    """A source of problems with a judge."""

    name: str
    contexts: str
    """Name of the context file with this task's templates: ``"default"``, ``"countdown"`` …"""
    has_verifier: bool
    """Whether :meth:`verify` gives rewards; without, only methods that need none can run."""

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always in the same order."""
        ...

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Judge a completion by its text (special tokens kept out, thinking included)."""
        ...


STUDENT = "student"
"""The role of the model under the bare question."""


@dataclass(frozen=True, slots=True)
class Role:
    """A context and the weights that score it."""

    context: str | None
    """Name of a template; None is the student's own prompt."""
    weights: Weights = "live"
    thinking: bool | None = None
    """Thinking switch of the chat template for this role."""
    contrast: int = 0
    """k selects the k-th ``$other_question`` and ``$wrong_sibling``, in a seeded order of the batch's other questions
    and the group's wrong completions."""
    temperature: float = 1.0
    """Divides the role's logits when it scores."""


@dataclass(slots=True)
class TokenSlice:
    """Inputs of a loss for a slice of N scored tokens; V is the vocabulary size."""

    target_N: Tensor
    """Token ids."""
    roles: Mapping[str, Tensor]
    """Log-probabilities [N, V] by role. Gradient flows only through ``"student"``."""
    inputs: Mapping[str, Tensor]
    """Per-token numbers [N] computed before the backward pass: ``advantage``, ``old_logprob``, the token's
    ``position`` in its completion (from 0), the completion's ``length``, the token's ``segment`` (its turn, from 1),
    its log-probability under every role that was scored then, and what ``on_batch`` returned as tensors."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the whole batch, such as a gate or a mean."""

    @property
    def student(self) -> Tensor:
        """The student's log-probabilities [N, V]."""
        return self.roles[STUDENT]

    def target(self, role: str) -> Tensor:
        """Log-probability [N] of each token under a role."""
        if role in self.roles:
            return self.roles[role].gather(-1, self.target_N[:, None]).squeeze(-1)
        return self.inputs[role]

    def has(self, role: str) -> Tensor:
        """Whether [N] each token's completion could be shown the role's context.

        Only methods with ``without_context`` "keep" or "mask" see completions without one. Such a completion's
        log-probability is NaN if the role was scored before the loss. If the loss compares the role's distribution, it
        is that of a head without input there: finite, and without meaning.
        """
        if has_prompt(role) in self.inputs:
            return self.inputs[has_prompt(role)] > 0
        if role in self.inputs:
            return ~self.inputs[role].isnan()
        return self.target_N >= 0


def has_prompt(role: str) -> str:
    """Name of the input [N] that is 1 where a token's completion could be shown a role's context, else 0."""
    return f"has {role}"


TokenLoss: TypeAlias = "Callable[[TokenSlice], Tensor]"
"""A method's loss [N] of some tokens, in nats where it is a divergence."""

TokenMetrics: TypeAlias = "Callable[[TokenSlice], Mapping[str, Tensor]]"
"""Numbers [N] of some tokens that a method reports, by name."""
