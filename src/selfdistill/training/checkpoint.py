"""A run's weights, optimiser and averaged teacher on disk and back, whatever the number of ranks.

Whole weights are written as one file by rank 0, beside the model's own directory. Shards are written by every rank in
the format of ``torch.distributed.checkpoint``, which is read again at any number of ranks, sharded or whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader

from selfdistill.distributed.fsdp import put
from selfdistill.distributed.world import ALONE, World
from selfdistill.models.policy import Policy, load_weights
from selfdistill.models.teachers import Teachers

WHOLE = "training.pt"
SHARDS = "shards"


def save_state(
    folder: Path, policy: Policy, optimiser: torch.optim.Optimizer, teachers: Teachers, world: World
) -> None:
    """Write what a resume needs besides the model's directory, and of shards also the weights. Every rank must call."""
    if policy.sharded:
        sharded = {**_weights(policy), **_moments(policy, optimiser), **_averages(teachers)}
        with _one_process_is_meant():
            state_dict_saver.save(sharded, checkpoint_id=folder / SHARDS, no_dist=world.size == 1)
    elif world.first:
        # The model's directory has them in its own number type.
        masters = {name: master.detach() for name, master in policy.masters.weights.items()}
        stored = {"optimiser": optimiser.state_dict(), "teachers": teachers.state_dict(), "masters": masters}
        torch.save(stored, folder / WHOLE)


def load_state(
    folder: Path, policy: Policy, optimiser: torch.optim.Optimizer, teachers: Teachers, world: World
) -> None:
    """Put back what :func:`save_state` and the model's directory hold, bit for bit. Every rank must call."""
    if (folder / SHARDS).is_dir():
        _make_room(folder, policy, optimiser)
        sharded = {**_weights(policy), **_moments(policy, optimiser), **_averages(teachers)}
        _load(sharded, folder, world)
        policy.refresh()
        teachers.refresh()
        return
    load_weights(policy, folder / "model")
    # Each rank moves what it reads to its own device; as they were saved, all of them would fill the first one's.
    stored: dict[str, Any] = torch.load(folder / WHOLE, map_location="cpu", weights_only=True)
    _put_masters(policy, stored)
    teachers.load_state_dict(stored["teachers"])
    if not policy.sharded:
        optimiser.load_state_dict(stored["optimiser"])
        return
    for place, parameter in enumerate(policy.trainable()):
        for key, value in stored["optimiser"]["state"].get(place, {}).items():
            room = torch.zeros_like(parameter) if value.shape == parameter.shape else torch.zeros_like(value)
            put(room, value)
            optimiser.state[parameter][key] = room


def load_trained(folder: Path, policy: Policy) -> None:
    """Put a checkpoint's weights alone, sharded or not, into a whole policy, as wide as its own are."""
    if (folder / SHARDS).is_dir():
        _load(_weights(policy), folder, ALONE)
        policy.refresh()
        return
    load_weights(policy, folder / "model")
    _put_masters(policy, torch.load(folder / WHOLE, map_location="cpu", weights_only=True))


def _put_masters(policy: Policy, stored: Mapping[str, Any]) -> None:
    """Where a checkpoint of whole weights has wider ones than its model's directory, those."""
    kept = policy.kept()
    for name, value in stored.get("masters", {}).items():
        put(kept[name], value)
    policy.refresh()


def _load(state: dict[str, Tensor], folder: Path, world: World) -> None:
    """Fill the tensors in place."""
    with _one_process_is_meant():
        state_dict_loader.load(state, checkpoint_id=folder / SHARDS, no_dist=world.size == 1)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Also where ``no_dist`` says so, torch warns that it assumes a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _weights(policy: Policy) -> dict[str, Tensor]:
    """What is trained; the rest is as it was loaded."""
    return {f"model.{name}": parameter.detach() for name, parameter in policy.trained().items()}


def _moments(policy: Policy, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's numbers, by the names of their parameters: indices would mean another thing in another model."""
    return {
        f"optimiser.{name}.{key}": value
        for name, parameter in policy.trained().items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _averages(teachers: Teachers) -> dict[str, Tensor]:
    return {f"teachers.{name}": average.detach() for name, average in teachers.state_dict().items()}


def _make_room(folder: Path, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
    """Give the fresh optimiser the numbers that the stored one has, all zero: what is loaded is loaded into them."""
    stored: Mapping[str, Any] = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    for name, parameter in policy.trained().items():
        start = f"optimiser.{name}."
        for entry, found in stored.items():
            if entry.startswith(start):
                like = parameter if found.size == parameter.shape else torch.zeros(found.size)
                optimiser.state[parameter][entry.removeprefix(start)] = torch.zeros_like(like)
