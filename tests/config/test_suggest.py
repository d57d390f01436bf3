"""What a config may not hold is one sentence: what, where, and what would be right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from selfdistill.config.run import RunConfig, load_config, parse_config
from selfdistill.config.suggest import suggest
from selfdistill.errors import ConfigError

MATH: dict[str, Any] = {"kind": "math", "path": "rows.jsonl"}

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "at the top": ({"step": 3}, "unknown key 'step'; did you mean 'steps'?"),
    "of an optional table": ({"model": {"lora": {"rnk": 3}}}, "unknown key 'model.lora.rnk'; did you mean 'model.lora"),
    "of a kind that is also another kind's key": (
        {"task": {"kind": "tools", "path": "rows.jsonl", "anser": "a"}},
        "unknown key 'task.anser'; did you mean 'task.answer'?",
    ),
    "a key called like its table's kind": (
        {"task": {"kind": "tools", "path": "rows.jsonl", "tools": 3}},
        "task.tools: input should be a valid string (got 3)",
    ),
    "of a source of rows": (
        {"task": {**MATH, "test_path": {"path": "x", "splt": "test"}}},
        "unknown key 'task.test_path.splt'; did you mean 'task.test_path.split'?",
    ),
    "another kind's key": (
        {"sampler": {"kind": "hf", "overlap": True}},
        "unknown key 'sampler.overlap'; known there: kind",
    ),
    "infinity, which TOML has": (
        {"optimiser": {"learning_rate": math.inf}},
        "optimiser.learning_rate: input should be a finite number (got inf)",
    ),
    "no number, which TOML has": (
        {"parallel": {"timeout": math.nan}},
        "parallel.timeout: input should be a finite number (got nan)",
    ),
    "before what is missing": ({"task": {"kind": "math", "anser": "a"}}, "unknown key 'task.anser'; did you mean"),
    "a field called like a kind of task": ({"task": {**MATH, "fields": {"code": 3}}}, "task.fields.code: input should"),
    "a field called like a step of pydantic's": (
        {"task": {**MATH, "fields": {"source": 3}}},
        "task.fields.source: input should be a valid string (got 3)",
    ),
    "a source that is neither": ({"task": {**MATH, "path": 3}}, "task.path: input should be a valid dictionary"),
    "a missing key of a kind": ({"sampler": {"kind": "server"}}, "sampler.urls: field required"),
    "a rule of a whole table": (
        {"sampler": {"kind": "vllm", "overlap": True, "max_staleness": 0}},
        "sampler: overlap learns from completions that are one update old",
    ),
    "a login of a server of another scheme": (
        {"sampler": {"kind": "server", "urls": ["ftp://me:secret@host"]}},
        "sampler.urls: a server is an http:// or https:// address, 'ftp://host' is not (got ['ftp://host'])",
    ),
    "a login of a server without a scheme": (
        {"sampler": {"kind": "server", "urls": ["me:secret@host:80"]}},
        "sampler.urls: a server is an http:// or https:// address, 'host:80' is not (got ['host:80'])",
    ),
    "a login of a server with a misspelt scheme": (
        {"sampler": {"kind": "server", "urls": ["http:/me:secret@h"]}},
        "sampler.urls: a server is an http:// or https:// address, 'http:/h' is not (got ['http:/h'])",
    ),
    "a key in the address of a server": (
        {"sampler": {"kind": "server", "urls": ["http://h:80/v1?key=secret"]}},
        "sampler.urls: a server's address has no ? and no #; a password goes before its host, "
        "name:word@ (got ['http://h:80/v1?…'])",
    ),
    "a key in the address of a judge": (
        {"reward": {"kind": "judge", "url": "http://h/v1?key=secret", "model": "m"}},
        "reward.judge: url has a ? or a #: give the base address alone, and name a key's variable in "
        "key_env (got {'url': 'http://h/v1?…'",
    ),
    "a login in a rule of a whole table": (
        {"sampler": {"kind": "server", "urls": ["http://me:secret@h"], "overlap": True, "sleep": True}},
        "sampler: overlap samples while the learner trains, and sleep forbids that: choose one of them "
        "(got {'kind': 'server', 'urls': ['http://h']",
    ),
    "a literal": (
        {"model": {"dtype": "f8"}},
        "model.dtype: input should be 'float32', 'bfloat16', 'float64' or 'auto' (got 'f",
    ),
    "a word of a list": ({"sinks": ["wandd"]}, "sinks: unknown name 'wandd'; did you mean 'wandb'?"),
    "no word in a list": ({"sinks": [3]}, "sinks.0: input should be 'tensorboard', 'wandb' or 'trackio' (got 3)"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_may_not_be_written_is_one_sentence(case: str) -> None:
    table, sentence = CASES[case]
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", **table}, "here")
    assert str(error.value).startswith(f"here: {sentence}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "the config: input should be an object (got [])"),
        (
            '{"steps": 3',
            "the config: invalid JSON: EOF while parsing an object at line 1 column 11 (got '{\"steps\": 3')",
        ),
    ],
)
def test_what_is_no_table_at_all_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        RunConfig.model_validate_json(text)
    assert suggest(error.value, RunConfig) == sentence


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (["task.kind=countdwon"], "unknown kind 'countdwon'; did you mean 'countdown'? known: countdown, "),
        (["sampler.kind=vlm"], "unknown kind 'vlm'; did you mean 'vllm'? known: hf, vllm, server"),
        (["evaluation.best=sucess"], "(got 'sucess'); did you mean 'success'?"),
        (["optimiser.schedule=cosin"], "(got 'cosin'); did you mean 'cosine'?"),
        (["parallel.kind=fsdp"], "(got 'fsdp'); did you mean 'fsdp2'?"),
        (["signal.equal=resampel"], "(got 'resampel'); did you mean 'resample'?"),
        (["method.weights=frozn"], "(got 'frozn'); did you mean 'frozen'?"),
        (["method.divergence.kind=reverse_lk"], "did you mean 'reverse_kl'?"),
        (["task.preset=gsm8", "task.kind=math"], "did you mean 'gsm8k'? shipped: "),
    ],
)
def test_a_misspelt_name_of_a_closed_list_is_told_the_nearest(settings: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("countdown-opsd", settings)
    assert hint in str(refused.value)
    assert "'object'" not in str(refused.value)


def test_a_config_that_is_not_there_is_told_the_nearest_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    told = {
        "mien.toml": "config 'mien.toml' not found; did you mean 'mine.toml'?",
        f"{tmp_path}/mien.toml": f"config '{tmp_path}/mien.toml' not found; did you mean '{tmp_path}/mine.toml'?",
        "other.toml": f"config 'other.toml' not found; there is no such file in {tmp_path}",
        "sub/mine.toml": "config 'sub/mine.toml' not found; there is no folder sub",
        "~nobody-here/mine.toml": "config '~nobody-here/mine.toml' not found; there is no folder ~nobody-here",
        "countdown-gropo": "config 'countdown-gropo' not found; did you mean 'countdown-grpo' or 'countdown-srpo' or "
        "'countdown-sdpo'? selfdistill configs lists the shipped ones; or give a path to a TOML file",
        "zzz": "config 'zzz' not found; selfdistill configs lists the shipped ones; or give a path to a TOML file",
    }
    for name, sentence in told.items():
        with pytest.raises(ConfigError) as refused:
            load_config(name)
        assert str(refused.value) == sentence
