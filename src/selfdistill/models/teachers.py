"""Teacher weights: live (the student's own), frozen (as they were at step 0), an average of the student's path, or
those of another model.

With full fine-tuning, frozen and averaged weights are copies of the policy. With LoRA they cost next to nothing:
frozen is the adapter switched off, and the average is a second adapter that starts as the student's. That average is
taken over the factors A and B separately, which is *not* the average of their product.
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
    """The teachers that a method asked for, behind one door."""

    def __init__(
        self,
        policy: Policy,
        *,
        needed: Set[Weights],
        rate: float,
        external: Mapping[External, Policy] | None = None,
        place: Callable[[Policy], None] = lambda policy: None,
    ) -> None:
        """Copy what is needed. Call it at step 0, before the student's first update and before it is sharded.

        ``rate`` is η in θ' ← (1−η)θ' + ηθ, used by ``"ema"`` alone; ``external`` holds other models, already loaded.
        ``place`` gives every other model its place among the ranks, one by one, so that few are whole at a time.
        """
        self.policy = policy
        self.rate = rate
        self.copies: dict[Weights, Policy] = {}
        self.copies.update((external or {}).items())
        for other in self.copies.values():
            place(other)
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
                # Of a student that has its place already, the copy needs what computes and no more.
                self.copies["frozen"].masters = Masters()
                place(self.copies["frozen"])
            if self.has_ema:
                # Placed as what is trained is placed, the average is kept as wide.
                self.copies["ema"] = copy.deepcopy(policy).eval()
                place(self.copies["ema"])
                for parameter in self.copies["ema"].kept().values():
                    parameter.requires_grad_(False)
                self.copies["ema"].requires_grad_(False)

    @property
    def pack(self) -> bool:
        """Whether batches may be packed for all of them, the student included."""
        return all(policy.packs for policy in (self.policy, *self.copies.values()))

    @contextmanager
    def weights(self, kind: Weights) -> Iterator[Policy]:
        """The policy under the named weights, without gradient."""
        with torch.no_grad():
            if kind == "live":
                yield self.policy
            elif kind in self.copies:
                yield self.copies[kind]
            elif kind == "frozen":
                with self.policy.model.disable_adapter():
                    yield self.policy
            else:
                # Switching adapters changes requires_grad of both: the student's must be as it was.
                self.policy.model.set_adapter(EMA_ADAPTER)
                try:
                    yield self.policy
                finally:
                    self.policy.model.set_adapter(STUDENT_ADAPTER)

    def release(self) -> None:
        """Let go of what forward passes have left whole of sharded weights, the student's among them."""
        for policy in (self.policy, *self.copies.values()):
            policy.release()

    def refresh(self) -> None:
        """Compute with what the average is now. To be called after every change of it from outside."""
        if "ema" in self.copies:
            self.copies["ema"].refresh()

    def update(self) -> None:
        """Move the average towards the student; to be called after each optimiser step."""
        if self.has_ema:
            self._pull(self.rate)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """The average's weights and the student's beside them; nothing where no average moves."""
        pairs = self._pairs() if self.has_ema and self.rate else []
        return [average for _, average, _ in pairs], [student for _, _, student in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        """The average's weights by name, shards where they are sharded.

        Frozen weights are the model that the run began with and need no copy.
        """
        return {name: average for name, average, _ in self._pairs()} if self.has_ema else {}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` gave."""
        for name, average, _ in self._pairs() if self.has_ema else ():
            copy_into(average, state[name])
        self.refresh()

    @torch.no_grad()
    def _pull(self, rate: float) -> None:
        for _, average, students in self._pairs():
            average.lerp_(students.to(average.dtype), rate)
        self.refresh()

    def _pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, averaged tensor and the student's tensor, for everything that is averaged."""
        students = self.policy.kept()
        if self.policy.is_lora:
            names = [name for name in students if f".{EMA_ADAPTER}." in name]
            return [(n, students[n], students[n.replace(f".{EMA_ADAPTER}.", f".{STUDENT_ADAPTER}.")]) for n in names]
        return [(n, average, students[n]) for n, average in self.copies["ema"].kept().items()]
