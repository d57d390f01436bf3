"""The interface of a method. It declares what to score and the loss; the trainer runs it.

A method is a pydantic model: its fields are its hyperparameters. It names the contexts that it scores and the weights
for each, the part of the vocabulary that it needs, and one pure loss per token. No trainer code depends on the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.config.sections import Strict
from selfdistill.errors import ConfigError
from selfdistill.objectives import (
    clipped_forward_kl,
    forward_kl,
    jensen_shannon,
    pointwise_mutual_information,
    reverse_kl,
    with_tail,
)
from selfdistill.types import STUDENT, Role, RolloutGroup, Scores, TokenSlice, View, Weights


@dataclass(frozen=True, slots=True)
class Recommended:
    """The paper's settings outside the loss: defaults of a config, written to ``config.json``."""

    learning_rate: float
    lora_learning_rate: float
    completions: int = 8
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class State(Protocol):
    """State of a method that lasts over steps and is saved in checkpoints."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The input of :meth:`Method.on_batch`: a batch with its scores, before the loss."""

    scores: Mapping[str, list[Scores | None]] = field(default_factory=dict)
    """Scores by role of ``precompute()``, one entry per view; None where the view lacks the role's prompt."""
    views: Sequence[View] = ()
    """The completions that enter the loss."""
    update: int = 0
    """Optimiser updates already made on this batch. A state that is updated once per batch is updated at 0."""
    step: int = 1
    """The run's step, from 1."""
    steps: int | None = None
    """Steps of the whole run; None outside a run, for example in the microscope."""


BARE = "bare"
"""Role with the teacher's weights and the student's own prompt."""

RENAMED_HOOKS = {
    "beforehand": "precompute()",
    "observe": "on_batch(state, batch)",
    "sources": "sampling_roles()",
}
"""Hooks of a method by their old names."""


class Method(Strict):
    """Base class of every method. Subclasses override these defaults."""

    recommended: ClassVar[Recommended]
    on_policy: ClassVar[bool] = True
    """Whether completions are sampled; if not, the reference solutions are the completions."""
    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "drop"
    """Treatment of a completion whose context cannot be rendered. "drop": it leaves the loss and is counted.
    "keep": it stays if a context of ``precompute()`` is missing, but not if the loss compares the missing distribution.
    "mask": it always stays, and the loss checks ``tokens.has(role)``."""
    weighting: ClassVar[Literal["token", "completion"]] = "token"
    """Whether the loss is a mean over tokens or over completions."""
    one_update: ClassVar[bool] = False
    """Whether the method's theory allows only one optimiser step per batch; a run with more steps warns."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a hook with its old name, because it would never be called.

        Raises:
            ConfigError: names the hook and its new name.
        """
        super().__pydantic_init_subclass__(**kwargs)
        for old, new in RENAMED_HOOKS.items():
            if old in vars(cls):
                raise ConfigError(f"method {cls.__name__}: {old}() is now called {new}; rename it")

    weights: Weights | None = Field(
        None,
        description='Weights of the teacher: "live", "frozen", "ema", { kind = "snapshot", every = N } (the student '
        'copied after every N-th step), { kind = "external", path = … } or { kind = "server", url = … }; unset: the '
        "method's own.",
    )
    teacher_thinking: bool | None = Field(
        None, description="Thinking switch of the chat template for the teacher's prompt; unset: as for the student."
    )
    teacher_rate: float = Field(
        0.0, ge=0, le=1, description="η of the averaged teacher: θ' ← (1−η)θ' + ηθ after each step."
    )

    def at_sampling_temperature(self, temperature: float) -> Method:
        """The method with its unset hyperparameters that default to ``sampling.temperature`` filled in."""
        return self

    def roles(self) -> Mapping[str, Role]:
        """Contexts scored beside the student's, by role name."""
        return {}

    def needs_rewards(self) -> bool:
        """Whether the loss depends on verdicts."""
        return True

    def sampling_roles(self) -> Sequence[str]:
        """Roles that sample completions. A role besides the student must have a context that examples can fill."""
        return (STUDENT,)

    def samples_for(self, role: str, group: RolloutGroup) -> bool:
        """Whether a sampling role besides the student samples for this group, which holds the rollouts so far.

        Roles sample in the order of :meth:`sampling_roles`. A group that a role does not sample for is unchanged.
        """
        return True

    @property
    def samples_on_demand(self) -> bool:
        """Whether :meth:`samples_for` decides, so that only the student's completions are known beforehand."""
        return type(self).samples_for is not Method.samples_for

    def precompute(self) -> Sequence[str]:
        """Roles that are scored before the loss and reach it as per-token inputs; ``"student"`` may be among them."""
        return ()

    def compared(self) -> Sequence[str]:
        """Roles whose whole distributions the loss compares: by default all that ``precompute()`` does not name.

        A role may be in both: ``on_batch`` then gets its entropies and the loss its distributions, for one more pass.
        """
        return [name for name in self.roles() if name not in self.precompute()]

    def likeliest(self, role: str) -> int | None:
        """How many of a role's likeliest tokens the method reads, beside the sampled token; None: the distribution.

        A teacher behind a server gives these log-probabilities alone. Of a role that the loss does not compare it is
        the sampled token's log-probability. A method that reads entropies of a role overrides it.
        """
        if role not in self.compared():
            return 0
        support = self.compared_on()
        if role == "teacher" and support.kind == "top_k" and support.chosen_by == "teacher":
            return support.k
        return None

    def compared_on(self) -> Full | TopK:
        """The tokens on which the loss compares roles: all of them by default."""
        return Full()

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        """Which completions of a group enter the loss; the others are counted as left out by the method."""
        return [True] * len(group.rollouts)

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """One number per completion, before the step; zeros unless the method uses rewards."""
        return rewards_PG.new_zeros(rewards_PG.shape)

    def turn_advantages(self, group: RolloutGroup, advantages: Sequence[float]) -> Sequence[Sequence[float]] | None:
        """One number per turn of each completion of a group; None: every turn has its completion's advantage.

        ``advantages`` are those of the completions.
        """
        return None

    def needs_turns(self) -> bool:
        """Whether the method compares the turns of episodes, which single answers do not have."""
        return False

    def new_state(self) -> State | None:
        """Initial state. The trainer saves it in checkpoints and passes it to :meth:`on_batch`."""
        return None

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """Values of the whole batch that the loss needs.

        A float reaches it as ``tokens.values[name]`` and is logged. A tensor with one number a view reaches every token
        of that view as ``tokens.inputs[name]``. A list with one tensor a view, of one number a token, reaches those
        tokens under the same name.
        """
        return {}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Loss [N] of each token; gradient through the student alone."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """Per-token numbers [N] to be averaged with the loss's weights and logged."""
        return {}

    def teacher(self, context: str, weights: Weights, contrast: int = 0) -> Role:
        """A teacher's role. ``weights`` applies unless the hyperparameter of that name is set."""
        return Role(context, self.weights or weights, self.teacher_thinking, contrast)


class DriftingTeacher(Method):
    """A method whose teacher may have other weights than the student, so that u is not pMI alone.

    Σ_t u_t = Σ_t [log T(y_t) − log B(y_t)] + Σ_t [log B(y_t) − log S(y_t)], where B has the teacher's weights and the
    student's prompt. The first sum is the pMI of completion and context, the second the drift of the weights.
    """

    weight_drift: bool = Field(
        False, description="Whether B is scored as well, and u logged as pmi and weight_drift. One more scoring pass."
    )

    def bare(self, weights: Weights) -> Mapping[str, Role]:
        """The role B, if ``weight_drift`` is set. It is scored before the loss, which does not need it."""
        return {BARE: Role(None, self.weights or weights)} if self.weight_drift else {}

    def precompute(self) -> Sequence[str]:
        """B, if ``weight_drift`` is set."""
        return (BARE,) if self.weight_drift else ()

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """The two parts of u, in nats a token, if B is scored."""
        if not self.weight_drift:
            return {}
        bare_N = tokens.target(BARE)
        return {
            "pmi": tokens.target("teacher").detach() - bare_N,
            "weight_drift": bare_N - tokens.target(STUDENT).detach(),
        }


class Full(Strict):
    """The whole vocabulary."""

    kind: Literal["full"] = "full"


class TopK(Strict):
    """The K likeliest tokens of the student, the teacher, or each of both, and one bin for all others."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(ge=1, description="Size of the support; a union has up to twice as many tokens.")
    chosen_by: Literal["student", "teacher", "union"] = Field("student", description="Whose likeliest tokens they are.")


Support = Annotated[Full | TopK, Field(discriminator="kind")]


class ForwardKL(Strict):
    """KL(teacher || student)."""

    kind: Literal["forward_kl"] = "forward_kl"
    support: Support = Field(default=Full(), description="Which part of the vocabulary is compared.")

    def between(self, student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
        """Value [N] at each token."""
        return forward_kl(student_NS, teacher_NS)


class ReverseKL(Strict):
    """KL(student || teacher)."""

    kind: Literal["reverse_kl"] = "reverse_kl"
    support: Support = Field(default=Full(), description="Which part of the vocabulary is compared.")

    def between(self, student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
        """Value [N] at each token."""
        return reverse_kl(student_NS, teacher_NS)


class JensenShannon(Strict):
    """w KL(T||M) + (1−w) KL(S||M), M = w T + (1−w) S."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    teacher_weight: float = Field(0.5, gt=0, lt=1, description="w; the ends 0 and 1 are other divergences and refused.")
    support: Support = Field(default=Full(), description="Which part of the vocabulary is compared.")

    def between(self, student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
        """Value [N] at each token."""
        return jensen_shannon(student_NS, teacher_NS, teacher_weight=self.teacher_weight)


class ClippedForwardKL(Strict):
    """Forward KL whose vocabulary entries are each clipped from above."""

    kind: Literal["clipped_forward_kl"] = "clipped_forward_kl"
    clip: float = Field(0.05, gt=0, description="τ, the most that one vocabulary entry may add.")
    support: Support = Field(default=Full(), description="Which part of the vocabulary is compared.")

    def between(self, student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
        """Value [N] at each token."""
        return clipped_forward_kl(student_NS, teacher_NS, clip=self.clip)


Divergence = Annotated[ForwardKL | ReverseKL | JensenShannon | ClippedForwardKL, Field(discriminator="kind")]


def gain(tokens: TokenSlice, role: str = "teacher") -> Tensor:
    """u [N] = log T(y) − log S(y), detached; 0 where the completion has no such context."""
    u_N = pointwise_mutual_information(tokens.target(role), tokens.target(STUDENT)).detach()
    return torch.where(u_N.isnan(), torch.zeros_like(u_N), u_N)


def at_temperature(tokens: TokenSlice, temperature: float) -> TokenSlice:
    """The same tokens with every role's distribution at this temperature."""
    if temperature == 1:
        return tokens
    roles = {name: torch.log_softmax(logprobs / temperature, -1) for name, logprobs in tokens.roles.items()}
    return TokenSlice(tokens.target_N, roles, tokens.inputs, tokens.values)


def on_support(tokens: TokenSlice, support: Full | TopK, *roles: str, teacher: str = "teacher") -> tuple[Tensor, ...]:
    """Log-probabilities [N, S] of the named roles on the support, tail bin included.

    ``teacher`` is the role that selects tokens if ``support.chosen_by`` names a teacher. In a union the second mention
    of a token has log-probability −inf under every role, so that it counts once.
    """
    if support.kind == "full":
        return tuple(tokens.roles[role] for role in roles)
    selecting = {"student": [STUDENT], "teacher": [teacher], "union": [STUDENT, teacher]}[support.chosen_by]
    selected_ids = [_likeliest(tokens.roles[role], support.k) for role in selecting]
    ids_NK = torch.cat(selected_ids, -1)
    if len(selected_ids) == 1:
        return tuple(with_tail(tokens.roles[role].gather(-1, ids_NK)) for role in roles)
    repeated_NK = (selected_ids[1][:, :, None] == selected_ids[0][:, None, :]).any(-1)
    repeated_NK = torch.cat([torch.zeros_like(selected_ids[0], dtype=torch.bool), repeated_NK], -1)
    gathered = (tokens.roles[role].gather(-1, ids_NK).masked_fill(repeated_NK, -math.inf) for role in roles)
    return tuple(with_tail(logprobs_NK) for logprobs_NK in gathered)


def _likeliest(logprobs_NV: Tensor, k: int) -> Tensor:
    """Ids [N, K] of the likeliest tokens."""
    # Unsorted, because order does not matter and sorting costs more than selection.
    return logprobs_NV.detach().topk(min(k, logprobs_NV.shape[-1]), -1, sorted=False).indices
