"""Cases that run on one process and on two, one after another in the same two processes: starting them costs most.

Run as a program, as each rank. Rank 0 takes the cases of one process by itself and writes what every case came to.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from selfdistill.config.sections import LimitsConfig, ParallelConfig, limits_on
from selfdistill.distributed.world import World
from selfdistill.training.movement import Movement
from selfdistill.types import Rollout
from support.engine import invent_groups, load_exact, make_bench, numbers_of, own_templates, perturb
from support.runs import tiny_run, train


@dataclass(frozen=True)
class Gradient:
    """One step of a method over invented completions; leaves gradients, metrics and scores."""

    name: str
    ranks: int
    method: tuple[str, dict[str, Any]]
    parallel: ParallelConfig
    tokens: int = 16384
    first: int | None = None
    """Only so many completions of the first group."""

    def run(self, folder: Path) -> Any:
        """Gradients by name, the step's record, and the numbers of every view."""
        policy, chat = load_exact(folder / "exact")
        groups = invent_groups(policy, chat)
        if self.first is not None:
            group = groups[0]
            groups = [
                replace(group, rollouts=group.rollouts[: self.first], verdicts=group.verdicts[: self.first]),
            ]
        if self.method[0] in ("pbsd", "hdpo"):  # learn from what the teacher has drawn: the second half of each group
            groups = [replace(group, rollouts=half_drawn(group.rollouts)) for group in groups]
        bench = make_bench(
            policy,
            chat,
            own_templates(folder / os.environ["RANK"]),
            *self.method,
            limits=limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=self.tokens)),
            move=perturb,
            parallel=self.parallel,
        )
        result = bench.step(groups)
        scores = {
            role: [None if one is None else (one.target_N, one.entropy_N) for one in column]
            for role, column in sorted(result.scores.items())
        }
        return bench.gradient(), numbers_of(result.record), scores


def half_drawn(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """The second half as the teacher's."""
    half = len(rollouts) // 2
    return (*rollouts[:half], *(replace(rollout, source="teacher") for rollout in rollouts[half:]))


@dataclass(frozen=True)
class WholeRun:
    """A run, or a piece of one, in a folder of its own."""

    name: str
    ranks: int
    model: str
    method: Any
    overrides: tuple[str, ...] = ()
    folder: str | None = None
    resume: bool = False
    stop_after: int | None = None

    def run(self, folder: Path) -> Any:
        """The summary."""
        config = tiny_run(folder / self.model, self.method, *self.overrides)
        return train(config, folder / (self.folder or self.name), resume=self.resume, stop_after=self.stop_after)


@dataclass(frozen=True)
class Sampled:
    """What this rank looks at of a small weight that is cut over all of them, every fourth number of the whole."""

    name: str
    ranks: int
    shape: tuple[int, int]

    def run(self, folder: Path) -> list[float]:
        """The numbers, which are their places in the whole."""
        del folder
        rows, columns = self.shape
        mesh = init_device_mesh("cpu", (self.ranks,))
        shards = distribute_tensor(torch.arange(float(rows * columns)).view(rows, columns), mesh, [Shard(0)])
        movement = Movement([shards])
        movement.stride = 4
        (found,) = movement.sample([shards])
        return found.tolist()


Case = Gradient | WholeRun | Sampled


def run_cases(cases: Sequence[Case], folder: Path) -> dict[str, Any]:
    """What every case came to, by its name."""
    torch.save(list(cases), folder / "cases.pt")
    for rank in range(2):
        (folder / str(rank)).mkdir()
    tests = Path(__file__).parents[1]
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    named = filter(None, [os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests), *named]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "support.ranks", str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
    results: dict[str, Any] = torch.load(folder / "results-0.pt", weights_only=False)
    others: dict[str, Any] = torch.load(folder / "results-1.pt", weights_only=False)
    failed = {name: found for part in (results, others) for name, found in part.items() if isinstance(found, str)}
    if failed:
        raise AssertionError("\n".join(f"{name}: {found}" for name, found in failed.items()))
    return {**results, **{f"{name} on rank 1": found for name, found in others.items()}}


def main(folder: Path) -> None:
    """Take part in all cases, as the rank that the environment says."""
    cases: list[Case] = torch.load(folder / "cases.pt", weights_only=False)
    rank = int(os.environ["RANK"])
    results: dict[str, Any] = {}
    for number, case in enumerate(cases):
        if case.ranks == 1 and rank != 0:
            continue
        with _group(number, case.ranks):
            try:
                results[case.name] = case.run(folder)
            except Exception:
                results[case.name] = traceback.format_exc()
                if case.ranks > 1:
                    break  # the other rank waits in vain
    torch.save(results, folder / f"results-{rank}.pt")


@contextmanager
def _group(number: int, ranks: int) -> Iterator[World]:
    """The two processes as a world of two, or this one on its own."""
    if ranks > 1:
        store = dist.FileStore(str(Path(sys.argv[1]) / f"store-{number}"), ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=ranks)
    try:
        yield World.current()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
