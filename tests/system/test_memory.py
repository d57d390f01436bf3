"""Memory that does not suffice: one sentence says where and what to lower, and the run goes on with that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from selfdistill.cli.app import main
from selfdistill.config.sampler import VLLMConfig
from selfdistill.distributed.world import World
from selfdistill.errors import OutOfMemory, is_full, out_of_memory
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.sampling.memory import BatchSizeLimit, empty_cache
from selfdistill.sampling.vllm import VLLMSampler
from selfdistill.types import Completion
from support.runs import lines, metrics, open_run, recorder, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has …\nmore")
ON_A_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried …")


def failing(call: Callable[..., Any], error: Exception, *, at: int) -> Callable[..., Any]:
    """A function whose call number ``at`` finds no memory."""
    calls = iter(range(1, 1000))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error
        return call(*args, **kwargs)

    return called


@pytest.mark.parametrize("error", [ON_A_GPU, ON_A_CPU, MemoryError()])
def test_what_says_that_memory_is_full_is_told_from_other_errors(error: Exception) -> None:
    assert is_full(error)
    assert not is_full(RuntimeError("shapes differ"))
    assert "\n" not in str(out_of_memory(error))
    assert "model.lora" in str(out_of_memory(error, "update"))


@pytest.mark.parametrize(
    ("owner", "name", "at", "phase", "remedy"),
    [
        # Drawn are: an evaluation, steps 1 and 2, an evaluation, step 3.
        (Policy, "forward", 4, "student", "limits.max_tokens_per_microbatch"),
        (HFSampler, "sample", 5, "generation", "sampling.max_tokens"),
        (HFSampler, "sample", 4, "evaluation", "sampling.max_tokens"),
    ],
)
def test_a_run_without_memory_says_what_to_lower_and_goes_on_with_it(
    owner: type,
    name: str,
    at: int,
    phase: str,
    remedy: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), ON_A_GPU, at=at))
        with pytest.raises(OutOfMemory) as caught:
            train(tiny_run(model, "grpo", "checkpoint.every=1"), tmp_path / "run")
    said = str(caught.value)
    done = len(lines(tmp_path / "run" / "metrics.jsonl"))
    found = "CUDA out of memory. Tried to allocate 8.00 GiB"
    assert f"not enough memory in the phase {phase!r} of a step ({found}): " in said
    assert remedy in said
    assert done > 0
    assert f"step {done} is kept, and --resume goes on from it" in said
    assert not list((tmp_path / "run").glob("bad-batch*"))
    lower = (
        "checkpoint.every=1",
        "limits.max_tokens_per_microbatch=64",
        "limits.max_logits_per_chunk=2048",
        "sampling.max_batch_size=6",
    )
    train(tiny_run(model, "grpo", *lower), tmp_path / "run", resume=True)
    train(tiny_run(model, "grpo", "checkpoint.every=1"), tmp_path / "whole")
    for mine, whole in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        assert mine["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    drawn = [[line["ids"] for line in lines(tmp_path / folder / "rollouts.jsonl")] for folder in ("run", "whole")]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("fit", [1, 3, 4, 7, 23])
@pytest.mark.parametrize("max_batch_size", [2, 512])
def test_completions_are_drawn_in_smaller_batches_where_a_large_one_does_not_fit(
    fit: int, max_batch_size: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    prompts = [[20, 21], [22], [23, 24, 25], [26], [27, 28]]
    tried: list[int] = []
    said: list[str] = []
    draw = HFSampler._sample_batch

    def limited(self: HFSampler, shown: Any, seeds: Sequence[int], params: SamplingParams) -> list[Completion]:
        tried.append(len(seeds))
        if len(seeds) > fit:
            raise ON_A_GPU
        return draw(self, shown, seeds, params)

    def drawn(limit: int | BatchSizeLimit) -> list[list[Completion]]:
        sampler = HFSampler(policy, stop_ids=chat.stop_ids, max_batch_size=limit)
        return sampler.sample(prompts, SamplingParams(count=5, max_tokens=12, seed=3))

    expected = drawn(512)
    monkeypatch.setattr(HFSampler, "_sample_batch", limited)
    limit = BatchSizeLimit(max_batch_size, said.append)
    for mine, whole in zip(drawn(limit), expected, strict=True):
        for one, other in zip(mine, whole, strict=True):
            assert one.ids == other.ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    failed = [size for size in tried if size > fit]
    assert all(size <= max_batch_size for size in tried)
    assert len(said) == len(failed)
    assert limit.value == min(max_batch_size, failed[-1] // 2 if failed else max_batch_size)
    tried.clear()
    drawn(limit)
    assert max(tried) <= fit, "what did not fit is not tried again"


def test_what_did_not_fit_is_said_once_and_tried_by_no_other_phase(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pbsd`` draws from its teacher too, and an evaluation from the student."""
    config = tiny_run(model, "pbsd", "steps=2")
    train(config, tmp_path / "whole")
    tried: list[int] = []
    draw = HFSampler._sample_batch

    def limited(self: HFSampler, shown: Any, seeds: Sequence[int], params: SamplingParams) -> list[Completion]:
        tried.append(len(seeds))
        if len(seeds) > 2:
            raise ON_A_GPU
        return draw(self, shown, seeds, params)

    monkeypatch.setattr(HFSampler, "_sample_batch", limited)
    run = open_run(config, tmp_path / "run")
    run.train(recorder(run).stop)
    said = [sentence for sentence in recorder(run).said if "sampling.max_batch_size" in sentence]
    assert [size for size in tried if size > 2] == [6, 3]
    assert [sentence.split(";")[0].split(" for ")[1] for sentence in said] == [
        "6 completions at once",
        "3 completions at once",
    ]
    drawn = [[line["ids"] for line in lines(tmp_path / name / "rollouts.jsonl")] for name in ("run", "whole")]
    assert drawn[0] == drawn[1]


def test_a_rank_other_than_the_first_names_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BatchSizeLimit(8).halve(8)
    assert capsys.readouterr().err.startswith("sampling.max_batch_size: ")
    monkeypatch.setattr("selfdistill.sampling.memory.World.current", lambda: World(rank=3, size=4))
    BatchSizeLimit(8).halve(8)
    assert capsys.readouterr().err.startswith("rank 3: sampling.max_batch_size: ")


def test_a_single_completion_that_does_not_fit_and_other_errors_are_not_tried_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    said: list[str] = []
    sampler = HFSampler(policy, stop_ids=chat.stop_ids, max_batch_size=BatchSizeLimit(4, said.append))
    tried: list[int] = []
    for error, sizes in ((ON_A_GPU, [4, 2, 1]), (RuntimeError("shapes differ"), [1])):

        def fails(self: HFSampler, shown: Any, seeds: Sequence[int], tokens: int, error: Any = error) -> Any:
            tried.append(len(seeds))
            raise error

        monkeypatch.setattr(HFSampler, "_sample_batch", fails)
        tried.clear()
        with pytest.raises(type(error)) as caught:
            sampler.sample([[20]], SamplingParams(count=4, max_tokens=3))
        assert caught.value is error
        assert tried == sizes


def test_no_gradient_is_kept_while_completions_are_drawn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    sample = HFSampler.sample

    def watched(self: HFSampler, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        kept.append(any(parameter.grad is not None for parameter in self.policy.trainable()))
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(HFSampler, "sample", watched)
    train(tiny_run(model, "sft", "steps=2", "evaluation.every=1"), tmp_path / "sft")
    train(tiny_run(model, "grpo", "steps=2", "evaluation.every=1"), tmp_path / "grpo")
    assert len(kept) > 6
    assert not any(kept)


def test_memory_is_given_back_where_it_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr("torch.accelerator.empty_cache", lambda: emptied.append(True))
    empty_cache(torch.device("cpu"))
    assert not emptied
    empty_cache(torch.device("cuda"))
    assert emptied


@pytest.mark.parametrize("asleep", [True, False])
def test_an_engine_that_wakes_finds_the_memory_that_the_learner_has_given_back(
    asleep: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    config = VLLMConfig(kind="vllm", sleep=True)
    sampler = VLLMSampler(str(model), chat, config, dtype="float32", folder=tmp_path, log=print)
    calls = Mock()
    calls.collective_rpc.side_effect = lambda name, args: [args[0]]
    monkeypatch.setattr("selfdistill.sampling.vllm.empty_cache", calls.empty_cache)
    sampler.engines, sampler.started, sampler.asleep = [calls], True, asleep
    sampler.update(policy, 1)
    woken = ["empty_cache", "wake_up", "collective_rpc", "wake_up", "update_weight_version"]
    assert [call[0] for call in calls.mock_calls] == (woken if asleep else ["collective_rpc", "update_weight_version"])


def test_the_command_line_says_it_in_one_sentence_wherever_it_happens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ON_A_GPU

    monkeypatch.setattr(torch.nn.Module, "to", full)
    config = tmp_path / "own.toml"
    path = json.dumps(str(model))
    config.write_text(
        f'steps = 1\ntask.kind = "countdown"\nmodel.path = {path}\nmethod.name = "grpo"\n', encoding="utf-8"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("selfdistill: not enough memory (CUDA out of memory.")
    assert "smaller model" in said
    monkeypatch.setattr(torch.nn.Module, "to", failing(full, RuntimeError("shapes differ"), at=1))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["train", str(config), "--out", str(tmp_path / "other")])
