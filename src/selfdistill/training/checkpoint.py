"""Save and load the weights, the optimiser state and the averaged teacher, at any number of ranks.

Without sharding rank 0 writes one file beside the model directory. With sharding every rank writes its shards in the
format of ``torch.distributed.checkpoint``, which can be loaded at any number of ranks, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader

from selfdistill.distributed.fsdp import copy_into
from selfdistill.distributed.world import ALONE, World
from selfdistill.files.jsonl import read_object, write_json
from selfdistill.models.policy import Policy, load_weights
from selfdistill.models.teachers import Teachers
from selfdistill.training.atomic import write_folder

WHOLE = "training.pt"
SHARDS = "shards"
BEST = "best.json"
"""File beside the best weights that names their step."""


def save_state(
    folder: Path, policy: Policy, optimiser: torch.optim.Optimizer, teachers: Teachers, world: World
) -> None:
    """Write the state that a resume needs besides the model directory; sharded weights too. Every rank must call."""
    if policy.sharded:
        sharded = {**_weights(policy), **_moments(policy, optimiser), **_averages(teachers)}
        with _one_process_is_meant():
            state_dict_saver.save(sharded, checkpoint_id=folder / SHARDS, no_dist=world.size == 1)
    elif world.is_rank_zero:
        # The model directory holds these weights in a narrower number type.
        masters = {name: master.detach() for name, master in policy.masters.weights.items()}
        stored = {"optimiser": optimiser.state_dict(), "teachers": teachers.state_dict(), "masters": masters}
        # A Python file reports a full disk clearly; torch's own file only says "unexpected pos 576 vs 534".
        with (folder / WHOLE).open("wb") as file:
            torch.save(stored, file)


def save_best(saved: Path, step: int, export: Callable[[Path], object], world: World = ALONE) -> None:
    """Replace ``best`` among the checkpoints by the model directory that ``export`` writes. Every rank must call.

    The step is stored beside the weights, because the newest checkpoint may be older than they are.
    """

    def fill(folder: Path) -> None:
        export(folder)
        if world.is_rank_zero:
            write_json(folder / BEST, {"step": step})

    write_folder(saved / "best", fill, world=world)


def best_step(saved: Path) -> int | None:
    """Return the step of the weights in ``best``; None if an earlier version wrote them."""
    path = saved / "best" / BEST
    return int(read_object(path)["step"]) if path.is_file() else None


def load_state(
    folder: Path, policy: Policy, optimiser: torch.optim.Optimizer, teachers: Teachers, world: World
) -> None:
    """Load what :func:`save_state` wrote and the model directory, bit for bit. Every rank must call."""
    if (folder / SHARDS).is_dir():
        _make_room(folder, policy, optimiser)
        sharded = {**_weights(policy), **_moments(policy, optimiser), **_averages(teachers)}
        _load(sharded, folder, world)
        policy.refresh()
        teachers.refresh()
        return
    load_weights(policy, folder / "model")
    # Load on the CPU: with the saved devices, all ranks would load onto the first GPU.
    stored: dict[str, Any] = torch.load(folder / WHOLE, map_location="cpu", weights_only=True)
    _put_masters(policy, stored)
    teachers.load_state_dict(stored["teachers"])
    if not policy.sharded:
        optimiser.load_state_dict(stored["optimiser"])
        return
    for index, parameter in enumerate(policy.trainable()):
        for key, value in stored["optimiser"]["state"].get(index, {}).items():
            moment = torch.zeros_like(parameter) if value.shape == parameter.shape else torch.zeros_like(value)
            copy_into(moment, value)
            optimiser.state[parameter][key] = moment


def load_trained(folder: Path, policy: Policy) -> None:
    """Load only the weights of a checkpoint, sharded or not, into an unsharded policy of any number type."""
    if (folder / SHARDS).is_dir():
        _load(_weights(policy), folder, ALONE)
        policy.refresh()
        return
    load_weights(policy, folder / "model")
    _put_masters(policy, torch.load(folder / WHOLE, map_location="cpu", weights_only=True))


def load_averages(folder: Path, teachers: Teachers) -> None:
    """Load only the averaged teacher and the snapshots of a checkpoint, sharded or not, into unsharded ones."""
    if not teachers.followers:
        return
    if (folder / SHARDS).is_dir():
        _load(_averages(teachers), folder, ALONE)
        teachers.refresh()
        return
    teachers.load_state_dict(torch.load(folder / WHOLE, map_location="cpu", weights_only=True)["teachers"])


def _put_masters(policy: Policy, stored: Mapping[str, Any]) -> None:
    """Load the master weights if the checkpoint has any. They are wider than those of the model directory."""
    parameters = policy.kept()
    for name, value in stored.get("masters", {}).items():
        copy_into(parameters[name], value)
    policy.refresh()


def _load(state: dict[str, Tensor], folder: Path, world: World) -> None:
    """Load the shards into these tensors in place."""
    with _one_process_is_meant():
        state_dict_loader.load(state, checkpoint_id=folder / SHARDS, no_dist=world.size == 1)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Silence torch's warning that it assumes a single process, which ``no_dist`` already states."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _weights(policy: Policy) -> dict[str, Tensor]:
    """The trained weights. All other weights are still as loaded from the base model."""
    return {f"model.{name}": parameter.detach() for name, parameter in policy.trained().items()}


def _moments(policy: Policy, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser state by parameter name, because parameter indices depend on how the model is placed."""
    return {
        f"optimiser.{name}.{key}": value
        for name, parameter in policy.trained().items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _averages(teachers: Teachers) -> dict[str, Tensor]:
    return {f"teachers.{name}": average.detach() for name, average in teachers.state_dict().items()}


def _make_room(folder: Path, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
    """Allocate the optimiser state that the checkpoint holds, as zeros: shards are loaded into existing tensors."""
    stored: Mapping[str, Any] = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    for name, parameter in policy.trained().items():
        prefix = f"optimiser.{name}."
        for entry, metadata in stored.items():
            if entry.startswith(prefix):
                shape_like = parameter if metadata.size == parameter.shape else torch.zeros(metadata.size)
                optimiser.state[parameter][entry.removeprefix(prefix)] = torch.zeros_like(shape_like)
