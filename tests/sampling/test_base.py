"""The parameters of sampling: their ranges, and the seed of each completion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.renamed import RENAMED
from selfdistill.config.run import config_for, parse_config
from selfdistill.errors import ConfigError
from selfdistill.files.jsonl import write_json
from selfdistill.seeds import derive
from selfdistill.training.run_folder import export_model
from support.runs import lines, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")


def test_the_seed_of_a_completion_does_not_depend_on_the_other_prompts() -> None:
    whole = sd.SamplingParams(count=2, max_tokens=1, seed=5).seeds(4)
    assert whole == [[derive(5, prompt, k) for k in range(2)] for prompt in range(4)]
    share = sd.SamplingParams(count=2, max_tokens=1, seed=5, ordinals=range(1, 4, 2)).seeds(2)
    assert share == [whole[1], whole[3]]
    assert sd.SamplingParams(count=1, max_tokens=1, seed=5, ordinals=[]).seeds(0) == []


def test_every_prompt_needs_an_ordinal() -> None:
    with pytest.raises(ConfigError, match="ordinals must hold one index for each of the 3 prompts, got 2"):
        sd.SamplingParams(count=1, max_tokens=1, ordinals=[0, 1]).seeds(3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 1.0),
        ("count", True),
        ("max_tokens", 0),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", "a"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .*, got {value!r}"):
        sd.SamplingParams(**{"count": 1, "max_tokens": 1, name: value})


def test_the_ends_of_the_ranges_are_taken() -> None:
    sd.SamplingParams(count=1, max_tokens=1, temperature=0, top_p=1, top_k=0, seed=-1)


@pytest.mark.parametrize("call", [sd.evaluate, sd.inspect])
def test_a_negative_temperature_is_refused_by_every_function_that_samples(call: Any) -> None:
    more = {"methods": ["antisd"]} if call is sd.inspect else {}
    with pytest.raises(sd.UserError, match=r"temperature must be a number of at least 0, got -1\.0"):
        call("countdown-base", "countdown", temperature=-1.0, **more)


def test_a_sampler_of_ones_own_gets_the_parameters() -> None:
    policy, chat = sd.load_policy("countdown-base")
    given: list[sd.SamplingParams] = []

    class Own:
        def sample(self, prompts: Sequence[Sequence[int]], params: sd.SamplingParams) -> list[list[sd.Completion]]:
            given.append(params)
            return [[sd.Completion((5,), (-1.0,), True)] * params.count for _ in prompts]

    options: dict[str, Any] = {"completions": 3, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4}
    (group,) = sd.rollout(policy, chat, None, ["make 3"], sampler=Own(), **options)
    assert len(group.rollouts) == 3
    (params,) = given
    assert (params.count, params.max_tokens) == (3, 7)
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 4)


# --- old names of config keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_answered_by_its_new_name(old: str, new: str) -> None:
    room, _, key = old.partition(".")
    kinds = {"sampler": {"kind": "server"}, "task": {"kind": "math", "path": "rows.jsonl"}}
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", room: {**kinds.get(room, {}), key: 3}}, "a test")
    assert str(error.value) == f"a test: {old!r} is now called {new!r}"


def test_a_run_with_old_keys_goes_on_and_can_be_read(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", "sampling.max_batch_size=5")
    train(config, tmp_path, stop_after=1)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    stored["sampling"]["max_rows"] = stored["sampling"].pop("max_batch_size")
    write_json(tmp_path / "config.json", stored)
    assert config_for(str(tmp_path), None, [], command="evaluate").sampling.max_batch_size == 5
    assert sd.load_config(tmp_path).sampling.max_batch_size == 5
    export_model(tmp_path, tmp_path.parent / "exported", step=None, dtype="float32")
    train(config, tmp_path, resume=True, stop_after=2)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
