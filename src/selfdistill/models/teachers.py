"""Teacher weights: live (the student's), frozen (those of step 0), an exponential moving average (EMA) of the student's
weights, or those of another model.

With full fine-tuning, frozen and averaged weights are copies of the policy. With LoRA they cost little memory: the
frozen teacher is the model with its adapter disabled, and the average is a second adapter, initialised from the
student's. It averages the factors A and B separately, which is *not* the average of their product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager

import torch
from torch import Tensor

from selfdistill.distributed.fsdp import copy_into
from selfdistill.models.loading import quiet_peft
from selfdistill.models.lora import STUDENT_ADAPTER
from selfdistill.models.masters import Masters
from selfdistill.models.policy import Policy
from selfdistill.types import External, Weights

EMA_ADAPTER = "ema"


class Teachers:
    """All teachers that a method uses."""

    def __init__(
        self,
        policy: Policy,
        *,
        needed: Set[Weights],
        rate: float,
        external: Mapping[External, Policy] | None = None,
        place: Callable[[Policy], None] = lambda policy: None,
    ) -> None:
        """Copy the weights that ``needed`` names. Call it at step 0, before the student is updated or sharded.

        ``rate`` is η in θ' ← (1−η)θ' + ηθ, for ``"ema"`` only. ``external`` holds other models, already loaded.
        ``place`` moves a teacher to its device and shards it. It is called for one teacher at a time, so that few are
        whole at once.
        """
        self.policy = policy
        self.rate = rate
        self.copies: dict[Weights, Policy] = {}
        self.copies.update((external or {}).items())
        for teacher in self.copies.values():
            place(teacher)
        self.has_ema = "ema" in needed
        if policy.is_lora:
            if self.has_ema:
                with quiet_peft():
                    policy.model.add_adapter(EMA_ADAPTER, policy.model.peft_config[STUDENT_ADAPTER])
                policy.model.set_adapter(STUDENT_ADAPTER)
                self._pull(1.0)
        else:
            if "frozen" in needed:
                self.copies["frozen"] = copy.deepcopy(policy).eval().requires_grad_(False)
                # If the student has masters already, the copy needs only the weights that compute.
                self.copies["frozen"].masters = Masters()
                place(self.copies["frozen"])
            if self.has_ema:
                # Placed while it still requires gradients, the average is kept in float32 like trained weights.
                self.copies["ema"] = copy.deepcopy(policy).eval()
                place(self.copies["ema"])
                for parameter in self.copies["ema"].kept().values():
                    parameter.requires_grad_(False)
                self.copies["ema"].requires_grad_(False)

    @property
    def pack(self) -> bool:
        """Whether batches may be packed for the student and all teachers."""
        return all(policy.packs for policy in (self.policy, *self.copies.values()))

    @contextmanager
    def weights(self, kind: Weights) -> Iterator[Policy]:
        """The policy with these weights, without gradient."""
        with torch.no_grad():
            if kind == "live":
                yield self.policy
            elif kind in self.copies:
                yield self.copies[kind]
            elif kind == "frozen":
                with self.policy.model.disable_adapter():
                    yield self.policy
            else:
                # Switching adapters changes requires_grad of both, so the student's is restored.
                self.policy.model.set_adapter(EMA_ADAPTER)
                try:
                    yield self.policy
                finally:
                    self.policy.model.set_adapter(STUDENT_ADAPTER)

    def release(self) -> None:
        """Reshard the weights of the student and all teachers after forward passes without a backward."""
        for policy in (self.policy, *self.copies.values()):
            policy.release()

    def refresh(self) -> None:
        """Copy the average's masters to the weights that compute. Call it after every change of the average."""
        if "ema" in self.copies:
            self.copies["ema"].refresh()

    def update(self) -> None:
        """Update the average. Call it after each optimiser step."""
        if self.has_ema:
            self._pull(self.rate)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """The average's weights, and the student's in the same order; two empty lists if there is no moving average."""
        pairs = self._pairs() if self.has_ema and self.rate else []
        return [average for _, average, _ in pairs], [student for _, _, student in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        """The average's weights by name; shards if they are sharded.

        Frozen weights are not saved: a resume loads the run's initial model.
        """
        return {name: average for name, average, _ in self._pairs()} if self.has_ema else {}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights from :meth:`state_dict`."""
        for name, average, _ in self._pairs() if self.has_ema else ():
            copy_into(average, state[name])
        self.refresh()

    @torch.no_grad()
    def _pull(self, rate: float) -> None:
        for _, average, students in self._pairs():
            average.lerp_(students.to(average.dtype), rate)
        self.refresh()

    def _pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, averaged tensor and the student's tensor of every averaged weight."""
        students = self.policy.kept()
        if self.policy.is_lora:
            names = [name for name in students if f".{EMA_ADAPTER}." in name]
            return [(n, students[n], students[n.replace(f".{EMA_ADAPTER}.", f".{STUDENT_ADAPTER}.")]) for n in names]
        return [(n, average, students[n]) for n, average in self.copies["ema"].kept().items()]
