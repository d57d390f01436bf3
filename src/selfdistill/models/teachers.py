"""Teacher weights: live (the student's), frozen (those of step 0), an exponential moving average (EMA) of the student's
weights, a snapshot of them that is renewed every N steps, or those of another model.

With full fine-tuning, frozen, averaged and snapshot weights are copies of the policy. With LoRA they cost little
memory: the frozen teacher is the model with its adapter disabled, and the average and each snapshot are further
adapters, initialised from the student's. The average is taken of the factors A and B separately, which is *not* the
average of their product.
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
from selfdistill.models.served import ServedModel
from selfdistill.types import External, Server, Snapshot, Weights

EMA_ADAPTER = "ema"
"""Name of the averaged adapter. A snapshot's is :func:`adapter_of`."""


class Teachers:
    """All teachers that a method uses."""

    def __init__(
        self,
        policy: Policy,
        *,
        needed: Set[Weights],
        rate: float,
        external: Mapping[External, Policy] | None = None,
        served: Mapping[Server, ServedModel] | None = None,
        place: Callable[[Policy], None] = lambda policy: None,
    ) -> None:
        """Copy the weights that ``needed`` names. Call it at step 0, before the student is updated or sharded.

        ``rate`` is η in θ' ← (1−η)θ' + ηθ, for ``"ema"`` only. ``external`` holds other models, already loaded,
        and ``served`` those behind servers, which score without a policy.
        ``place`` moves a teacher to its device and shards it. It is called for one teacher at a time, so that few are
        whole at once.
        """
        self.policy = policy
        self.served = dict(served or {})
        self.rate = rate
        self.copies: dict[Weights, Policy] = {}
        self.copies.update((external or {}).items())
        for teacher in self.copies.values():
            place(teacher)
        self.has_ema = "ema" in needed
        # In one order on every rank: making and sharding a copy are collective.
        ordered = sorted(needed, key=str)
        self.followers: list[Weights] = [kind for kind in ordered if kind == "ema" or isinstance(kind, Snapshot)]
        """Weights that follow the student and are saved in checkpoints."""
        if policy.is_lora:
            for kind in self.followers:
                with quiet_peft():
                    policy.model.add_adapter(adapter_of(kind), policy.model.peft_config[STUDENT_ADAPTER])
                policy.model.set_adapter(STUDENT_ADAPTER)
                self._pull(kind, 1.0)
            return
        for kind in ordered:
            if kind == "frozen" or isinstance(kind, Snapshot):
                self.copies[kind] = copy.deepcopy(policy).eval().requires_grad_(False)
                # If the student has masters already, the copy needs only the weights that compute.
                self.copies[kind].masters = Masters()
                place(self.copies[kind])
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
                self.policy.model.set_adapter(adapter_of(kind))
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
            self._pull("ema", self.rate)

    def take_snapshots(self, step: int) -> None:
        """Renew the snapshots whose period divides ``step``. Call it after each step of the run, counted from 1."""
        for kind in self.followers:
            if isinstance(kind, Snapshot) and step % kind.every == 0:
                self._pull(kind, 1.0)

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """The average's weights, and the student's in the same order; two empty lists if there is no moving average."""
        pairs = self._pairs("ema") if self.has_ema and self.rate else []
        return [average for _, average, _ in pairs], [student for _, _, student in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of the average and the snapshots by name; shards if they are sharded.

        Frozen weights are not saved: a resume loads the run's initial model.
        """
        return {_saved_name(kind, name): follower for kind in self.followers for name, follower, _ in self._pairs(kind)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights from :meth:`state_dict`."""
        for kind in self.followers:
            for name, follower, _ in self._pairs(kind):
                copy_into(follower, state[_saved_name(kind, name)])
        self.refresh()

    @torch.no_grad()
    def _pull(self, kind: Weights, rate: float) -> None:
        """Move a follower towards the student; rate 1 copies the student exactly."""
        for _, follower, student in self._pairs(kind):
            follower.lerp_(student.to(follower.dtype), rate)
        self.refresh()

    def _pairs(self, kind: Weights) -> list[tuple[str, Tensor, Tensor]]:
        """Name, tensor and the student's tensor of every weight that follows the student."""
        students = self.policy.kept()
        if self.policy.is_lora:
            follower_key, student_key = f".{adapter_of(kind)}.", f".{STUDENT_ADAPTER}."
            names = [name for name in students if follower_key in name]
            return [(name, students[name], students[name.replace(follower_key, student_key)]) for name in names]
        # A snapshot only computes: it has no masters, and what it keeps are the weights that compute.
        return [(name, weight, students[name]) for name, weight in self.copies[kind].kept().items()]


def adapter_of(kind: Weights) -> str:
    """Name of the adapter of the student (``"live"``), or of the average or a snapshot that follows it."""
    if kind == "live":
        return STUDENT_ADAPTER
    return f"snapshot{kind.every}" if isinstance(kind, Snapshot) else EMA_ADAPTER


def _saved_name(kind: Weights, name: str) -> str:
    """Name of a follower's weight in a checkpoint."""
    return f"{adapter_of(kind)}.{name}" if isinstance(kind, Snapshot) else name
