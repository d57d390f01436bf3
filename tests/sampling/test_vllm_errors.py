"""What an engine of the run's own cannot do is one sentence. The engine is a stand-in: vLLM itself is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfdistill.config.sampler import VLLMConfig
from selfdistill.errors import SamplerError
from selfdistill.models.policy import load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.vllm import VLLMSampler


class EngineDeadError(Exception):
    """An error of a class of the engine's own."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("request 3\nThe decoder prompt (length 12) is longer than the maximum model length of 8."),
        EngineDeadError("EngineCore encountered an issue."),
    ],
    ids=["a prompt too long", "a dead process"],
)
def test_an_engine_that_fails_is_one_sentence(
    error: Exception, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    _, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    sampler = VLLMSampler(str(model), chat, VLLMConfig(kind="vllm"), dtype="float32", folder=tmp_path, log=print)
    sampler.engines, sampler.label = [SimpleNamespace(generate=generate)], "selfdistill-x-0"
    with pytest.raises(SamplerError) as told:
        sampler.sample([[20, 21]], SamplingParams(count=1, max_tokens=4))
    last = str(error).splitlines()[-1]
    assert str(told.value) == f"vLLM cannot sample from the weights selfdistill-x-0: {last}"
