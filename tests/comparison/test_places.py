"""Where the runs of a comparison go: cores, and GPUs of their own."""

from __future__ import annotations

from typing import Any

import pytest

from selfdistill.comparison.places import Places, places, shared_out
from selfdistill.config.run import ResolvedConfig, load_config
from selfdistill.errors import ConfigError
from selfdistill.training.problem import resolve

CARDS = ["0", "1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize(
    ("needed", "jobs", "runs", "expected"),
    [
        (1, None, 20, CARDS),
        (1, None, 3, ["0", "1", "2"]),
        (1, 2, 20, ["0", "1"]),
        # More runs than GPUs: they share them evenly.
        (1, 10, 20, [*CARDS, "0", "1"]),
        (3, None, 20, ["0,1,2", "3,4,5"]),
        (8, None, 20, [",".join(CARDS)]),
        # Too few for a single run, which says so itself.
        (9, None, 20, [",".join(CARDS)[:15]]),
    ],
)
def test_each_run_has_the_gpus_that_it_needs(needed: int, jobs: int | None, runs: int, expected: list[str]) -> None:
    assert shared_out(CARDS, needed, jobs=jobs, runs=runs) == expected


def test_more_runs_of_several_gpus_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="--jobs 3: a run takes 3 GPUs, and 8 GPUs of this machine have room for 2 runs"
    ):
        shared_out(CARDS, 3, jobs=3, runs=20)


def config(device: str, **sampler: Any) -> ResolvedConfig:
    """A config as it is resolved on a machine with that device."""
    settings = [f"sampler.{key}={value!r}" for key, value in sampler.items()]
    resolved = resolve(load_config("countdown-grpo", ["model.device='cpu'", *settings]))
    return resolved.model_copy(update={"model": resolved.model.model_copy(update={"device": device})})


@pytest.mark.parametrize(
    ("given", "jobs", "expected"),
    [
        (config("cpu"), None, (None,) * 4),
        (config("cpu"), 3, (None,) * 3),
        (config("cpu", kind="vllm"), None, (None,)),
        (config("mps"), None, (None,)),
        (config("cuda"), None, ("b", "c", "a")),
        (config("cuda:1"), None, (None,)),
        (config("cuda", kind="vllm", tensor_parallel_size=3), None, ("b,c,a",)),
        (config("cuda", kind="vllm", servers=2), None, ("b,c,a",)),
        (config("cuda", kind="server", urls=["http://127.0.0.1:1"]), None, ("b",)),
        (config("cuda", kind="vllm", servers=1, devices=[1]), 2, (None, None)),
    ],
)
def test_a_machine_of_four_cores_and_three_visible_gpus(
    given: ResolvedConfig, jobs: int | None, expected: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b,c,a")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert places(given, jobs=jobs, runs=9, cores=4).gpus == expected


def test_the_gpus_are_told_and_go_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = places(config("cuda"), jobs=None, runs=9, cores=4)
    assert found.environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert found.told() == ", on GPUs 0 and 1"
    assert (Places((None,)).environments, Places((None,)).told()) == ([{}], "")
